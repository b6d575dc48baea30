//! Answers "count" with how often it was asked, from the host's state: a number that a
//! client has seen must never be given twice. "loop" is never answered.

use homeostat_sdk::*;

struct Counts;

impl Router for Counts {
    fn route(request: &Request, _: &Classification, _: &[Tier], _: &Snapshot) -> Result<Decision> {
        match request.question() {
            "loop" => loop {
                std::hint::spin_loop();
            },
            _ => Ok(Decision::Answer(DirectAnswer {
                text: state::increment("n", 1)?.to_string(),
                method: "counted".to_owned(),
            })),
        }
    }
}

export_router!(Counts);
