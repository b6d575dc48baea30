/* An answer without text is no answer. */
#include "homeostat.h"

static bool validate(const hs_request *request, const hs_answer *answer,
                     const hs_snapshot *snapshot, hs_verdict *verdict, hs_error *error) {
    (void)request, (void)snapshot, (void)error;
    bool passed = hs_trimmed(answer->text).len > 0;
    if (passed) {
        hs_accept(verdict, 0.5f);
    } else {
        hs_escalate(verdict, 0);
    }
    hs_finding(verdict, "not-empty", passed, "");
    return true;
}

HS_VALIDATOR(validate)
