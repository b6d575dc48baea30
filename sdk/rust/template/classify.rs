//! Short questions are simple.

use homeostat_sdk::*;

struct Words;

impl Classifier for Words {
    fn classify(request: &Request, _: &Snapshot) -> Result<Classification> {
        let words = request.question().split_whitespace().count();
        let complex = (words as f32 / 100.0).min(1.0);
        Ok(Classification {
            p_simple: 1.0 - complex,
            p_medium: 0.0,
            p_complex: complex,
            confidence: 0.5,
            ..Classification::default()
        })
    }
}

export_classifier!(Words);
