/* Short questions are simple. */
#include "homeostat.h"

static bool classify(const hs_request *request, const hs_snapshot *snapshot,
                     hs_classification *classification, hs_error *error) {
    (void)snapshot, (void)error;
    hs_text text = hs_question(request);
    size_t words = 0;
    for (size_t i = 0; i < text.len; i++) {
        bool begins = !isspace(text.ptr[i]) && (i == 0 || isspace(text.ptr[i - 1]));
        words += begins;
    }
    float hard = words < 100 ? (float)words / 100 : 1;
    return hs_classify(classification, 1 - hard, 0, hard);
}

HS_CLASSIFIER(classify)
