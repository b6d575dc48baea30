//! How hard is a request? Judged by its words.

use homeostat_sdk::*;

struct Lexical;

impl Classifier for Lexical {
    fn classify(request: &Request, _: &Snapshot) -> Result<Classification> {
        let chars = request.question().chars().count() as f32;
        let p = chars / (chars + 300.0);
        Ok(Classification {
            p_simple: (1.0 - p) * (1.0 - p),
            p_medium: 2.0 * p * (1.0 - p),
            p_complex: p * p,
            confidence: 0.2,
            ..Classification::default()
        })
    }
}

export_classifier!(Lexical);
