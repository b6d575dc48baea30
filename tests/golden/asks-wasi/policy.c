/* Asks the C library for everything that a policy does not get, and tells what came of it
 * as the reason of its plan. */
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "homeostat.h"

static bool route(const hs_request *request, const hs_classification *classification,
                  const hs_tier *tiers, size_t len, const hs_snapshot *snapshot,
                  hs_decision *decision, hs_error *error) {
    (void)request, (void)classification, (void)snapshot;
    if (!len) return hs_fail(error, "no tier");
    FILE *read = fopen("/etc/passwd", "r");
    FILE *write = fopen("left-behind.txt", "w");
    const char *home = getenv("HOME");
    char line[8];
    bool input = fgets(line, sizeof line, stdin) != NULL;
    printf("printed\n");
    fprintf(stderr, "complained\n");
    fflush(NULL);
    struct timespec now;
    bool clock = clock_gettime(CLOCK_MONOTONIC, &now) == 0;
    char reason[128];
    snprintf(reason, sizeof reason, "read %d, write %d, environment %d, input %d, clock %d",
             read != NULL, write != NULL, home != NULL, input, clock);
    hs_plan(decision, reason);
    hs_try(decision, &tiers[0]);
    return true;
}

HS_ROUTER(route)
