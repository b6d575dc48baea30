/* Pleasant ways to say what the contract asks for.
 *
 * contract.h is generated from the contract when the policy is built (a copy of the last
 * one lies in build/); this header gives its records short names and builds answers.
 *
 * Rules of the contract in C: texts have a pointer and a length and no zero at their end;
 * what may be absent has is_some, never read it as 0; a call answers true, or false with
 * an error. Whatever is answered is copied, so no memory needs care: an instance lives for
 * one request, and everything goes with it.
 */
#ifndef HOMEOSTAT_H
#define HOMEOSTAT_H

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "contract.h"

typedef contract_string_t hs_text;
typedef homeostat_policy_types_request_t hs_request;
typedef homeostat_policy_types_message_t hs_message;
typedef homeostat_policy_types_snapshot_t hs_snapshot;
typedef homeostat_policy_types_device_t hs_device;
typedef homeostat_policy_types_sample_t hs_sample;
typedef homeostat_policy_types_classification_t hs_classification;
typedef homeostat_policy_types_tier_t hs_tier;
typedef homeostat_policy_types_step_t hs_step;
typedef homeostat_policy_types_decision_t hs_decision;
typedef homeostat_policy_types_refusal_t hs_refusal;
typedef homeostat_policy_types_answer_t hs_answer;
typedef homeostat_policy_types_assessment_t hs_assessment;
typedef homeostat_policy_types_verdict_t hs_verdict;
typedef homeostat_policy_types_outcome_t hs_outcome;
typedef homeostat_policy_types_error_t hs_error;

/* ---- texts ------------------------------------------------------------------------ */

/* A copy of these bytes. */
static inline hs_text hs_copy(const void *bytes, size_t len) {
    hs_text text = {malloc(len ? len : 1), len};
    if (!text.ptr) abort();
    memcpy(text.ptr, bytes, len);
    return text;
}

/* A copy of a C string. */
static inline hs_text hs_text_of(const char *string) {
    return hs_copy(string, strlen(string));
}

/* A C string of a text. */
static inline const char *hs_string(hs_text text) {
    char *string = malloc(text.len + 1);
    if (!string) abort();
    memcpy(string, text.ptr, text.len);
    string[text.len] = 0;
    return string;
}

static inline bool hs_is(hs_text text, const char *string) {
    return text.len == strlen(string) && memcmp(text.ptr, string, text.len) == 0;
}

/* Without white space at both ends. */
static inline hs_text hs_trimmed(hs_text text) {
    while (text.len && isspace(text.ptr[0])) text.ptr++, text.len--;
    while (text.len && isspace(text.ptr[text.len - 1])) text.len--;
    return text;
}

/* The last message of the person; empty when there is none. */
static inline hs_text hs_question(const hs_request *request) {
    for (size_t i = request->messages.len; i-- > 0;) {
        const hs_message *message = &request->messages.ptr[i];
        if (message->role == HOMEOSTAT_POLICY_TYPES_ROLE_USER) return message->content;
    }
    return (hs_text){NULL, 0};
}

/* ---- route ------------------------------------------------------------------------ */

/* Begins a plan; hs_try adds its steps. */
static inline bool hs_plan(hs_decision *decision, const char *reason) {
    memset(decision, 0, sizeof *decision);
    decision->tag = HOMEOSTAT_POLICY_TYPES_DECISION_PLAN;
    decision->val.plan.reason = hs_text_of(reason);
    return true;
}

/* One more step, with the host's defaults and a threshold of one half. The pointer holds
 * until the next step is added. */
static inline hs_step *hs_try(hs_decision *decision, const hs_tier *tier) {
    size_t len = decision->val.plan.steps.len + 1;
    hs_step *steps = realloc(decision->val.plan.steps.ptr, len * sizeof *steps);
    if (!steps) abort();
    decision->val.plan.steps.ptr = steps;
    decision->val.plan.steps.len = len;
    hs_step *step = &steps[len - 1];
    memset(step, 0, sizeof *step);
    step->tier = hs_copy(tier->id.ptr, tier->id.len);
    step->accept_threshold = 0.5f;
    return step;
}

/* An answer that needs no model; method says how it was found. */
static inline bool hs_direct(hs_decision *decision, const char *text, const char *method) {
    memset(decision, 0, sizeof *decision);
    decision->tag = HOMEOSTAT_POLICY_TYPES_DECISION_ANSWER;
    decision->val.answer.text = hs_text_of(text);
    decision->val.answer.method = hs_text_of(method);
    return true;
}

/* Not served; message is for the client. */
static inline bool hs_reject(hs_decision *decision, hs_refusal kind, const char *message) {
    memset(decision, 0, sizeof *decision);
    decision->tag = HOMEOSTAT_POLICY_TYPES_DECISION_REJECT;
    decision->val.reject.kind = kind;
    decision->val.reject.message = hs_text_of(message);
    return true;
}

/* ---- classify --------------------------------------------------------------------- */

/* How hard a request is. The three probabilities are made to add up to 1. */
static inline bool hs_classify(hs_classification *c, float simple, float medium, float complex) {
    float sum = simple + medium + complex;
    memset(c, 0, sizeof *c);
    c->p_simple = simple / sum;
    c->p_medium = medium / sum;
    c->p_complex = complex / sum;
    c->task = HOMEOSTAT_POLICY_TYPES_TASK_OTHER;
    c->confidence = 0.5f;
    return true;
}

/* ---- validate --------------------------------------------------------------------- */

/* Send the answer. */
static inline bool hs_accept(hs_verdict *verdict, float confidence) {
    memset(verdict, 0, sizeof *verdict);
    verdict->tag = HOMEOSTAT_POLICY_TYPES_VERDICT_ACCEPT;
    verdict->val.accept.confidence = confidence;
    return true;
}

/* Ask the next tier. */
static inline bool hs_escalate(hs_verdict *verdict, float confidence) {
    hs_accept(verdict, confidence);
    verdict->tag = HOMEOSTAT_POLICY_TYPES_VERDICT_ESCALATE;
    return true;
}

/* Send this text instead. */
static inline bool hs_amend(hs_verdict *verdict, hs_text text, float confidence) {
    memset(verdict, 0, sizeof *verdict);
    verdict->tag = HOMEOSTAT_POLICY_TYPES_VERDICT_AMEND;
    verdict->val.amend.text = hs_copy(text.ptr, text.len);
    verdict->val.amend.assessment.confidence = confidence;
    return true;
}

/* Adds what was checked to a verdict that accepts or escalates. */
static inline void hs_finding(hs_verdict *verdict, const char *check, bool passed, const char *detail) {
    /* Both cases hold the same record at the same place. */
    hs_assessment *assessment = &verdict->val.accept;
    size_t len = assessment->findings.len + 1;
    size_t size = sizeof *assessment->findings.ptr;
    assessment->findings.ptr = realloc(assessment->findings.ptr, len * size);
    if (!assessment->findings.ptr) abort();
    assessment->findings.ptr[len - 1].check = hs_text_of(check);
    assessment->findings.ptr[len - 1].passed = passed;
    assessment->findings.ptr[len - 1].detail = hs_text_of(detail);
    assessment->findings.len = len;
}

/* ---- errors, log ------------------------------------------------------------------ */

/* Ends the call with an error: the host's fallback answers. `return hs_fail(error, …);` */
static inline bool hs_fail(hs_error *error, const char *text) {
    error->tag = HOMEOSTAT_POLICY_TYPES_ERROR_OTHER;
    error->val.other = hs_text_of(text);
    return false;
}

/* Ends the call, since a setting cannot be read. */
static inline bool hs_wrong(hs_error *error, const char *name, const char *value,
                            const char *expected) {
    char text[256];
    snprintf(text, sizeof text, "setting %s is \"%.80s\", expected %s", name, value, expected);
    error->tag = HOMEOSTAT_POLICY_TYPES_ERROR_INVALID_ARGUMENT;
    error->val.invalid_argument = hs_text_of(text);
    return false;
}

/* A setting as a C string; NULL when the operator has not set it. Needs `import
 * wasi:config/store@0.2.0-rc.1;` in world.wit and the grant "config", and therefore is a
 * macro. */
#define hs_config(name)                                                            \
    ({                                                                             \
        hs_text hs_key = hs_text_of(name);                                         \
        contract_option_string_t hs_found = {0};                                   \
        wasi_config_store_error_t hs_refused;                                      \
        bool hs_told = wasi_config_store_get(&hs_key, &hs_found, &hs_refused);      \
        hs_told && hs_found.is_some ? hs_string(hs_found.val) : (const char *)NULL; \
    })

/* A setting that is a number between two others; `value` stays as it is when it is not set.
 * Anything else ends the call: a policy that ignored a setting would seem to obey.
 * `if (!hs_number("watts", 1, 1e6, &watts, error)) return false;` */
#define hs_number(name, least, most, value, error) \
    hs_number_of(name, hs_config(name), least, most, value, error)

static inline bool hs_number_of(const char *name, const char *text, double least, double most,
                                double *value, hs_error *error) {
    if (!text) return true;
    char *end;
    double number = strtod(text, &end);
    if (end != text && !*end && number >= least && number <= most) {
        *value = number;
        return true;
    }
    char expected[64];
    snprintf(expected, sizeof expected, "%g to %g", least, most);
    return hs_wrong(error, name, text, expected);
}

/* One line to the host's log. Needs `import wasi:logging/logging@0.1.0-draft;` in
 * world.wit, and therefore is a macro; levels are WASI_LOGGING_LOGGING_LEVEL_INFO and so on.
 * The functions of the other powers are in contract.h under their own names. */
#define hs_log(level, string)                                  \
    do {                                                       \
        hs_text hs_context = hs_text_of("policy");             \
        hs_text hs_message = hs_text_of(string);               \
        wasi_logging_logging_log(level, &hs_context, &hs_message); \
    } while (0)

/* ---- what a policy exports --------------------------------------------------------- */

/* bool f(const hs_request *, const hs_snapshot *, hs_classification *, hs_error *) */
#define HS_CLASSIFIER(f)                                                                    \
    bool exports_homeostat_policy_classifier_classify(                                      \
        hs_request *request, hs_snapshot *snapshot, hs_classification *ret, hs_error *err) { \
        return f(request, snapshot, ret, err);                                              \
    }

/* bool f(const hs_request *, const hs_classification *, const hs_tier *, size_t,
 *        const hs_snapshot *, hs_decision *, hs_error *) */
#define HS_ROUTER(f)                                                                         \
    bool exports_homeostat_policy_router_route(                                              \
        hs_request *request, hs_classification *classification,                              \
        exports_homeostat_policy_router_list_tier_t *tiers, hs_snapshot *snapshot,           \
        hs_decision *ret, hs_error *err) {                                                   \
        return f(request, classification, tiers->ptr, tiers->len, snapshot, ret, err);       \
    }

/* bool f(const hs_request *, const hs_answer *, const hs_snapshot *, hs_verdict *,
 *        hs_error *) */
#define HS_VALIDATOR(f)                                                                \
    bool exports_homeostat_policy_validator_validate(                                  \
        hs_request *request, hs_answer *answer, hs_snapshot *snapshot, hs_verdict *ret, \
        hs_error *err) {                                                               \
        return f(request, answer, snapshot, ret, err);                                 \
    }

/* void f(const hs_request *, const hs_outcome *) */
#define HS_LEARNER(f)                                                                     \
    void exports_homeostat_policy_learner_learn(hs_request *request, hs_outcome *outcome) { \
        f(request, outcome);                                                              \
    }

#endif
