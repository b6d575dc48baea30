//! Which quality costs how many joules: the metabolic host at several prices of energy beside a
//! static router at several thresholds, on the same days.
//!
//! Two hosts of different quality are no ranking: whoever always asks the small tier takes the
//! fewest joules. So each metabolic setting is set beside the cheapest static one that is right
//! as often, in every bootstrap round anew. It refuses to extend a curve: where no static
//! setting is right as often, there is no ratio, and no interval where that is so in more rounds
//! than lie beyond one end of it.

use std::path::Path;

use serde_json::{Value, json};

use super::bootstrap::Bootstrap;
use super::svg::{self, Line, Panel};
use super::{Figure, shown, write};
use crate::Failure;
use crate::simulate::{Busy, By, Judgement, Scene, Score, frugal_threshold, scores};

/// Prices of energy of the metabolic router: nothing to four times the bench's own.
const PRICES: [f64; 6] = [0.0, 0.1, 0.2, 0.4, 0.8, 1.6];
/// Shares of the requests that a static router gives the large tier, both ends included.
const SHARES: [f64; 8] = [0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0];

/// One setting and its days.
struct Setting {
    name: String,
    days: Vec<Score>,
}

/// Both hosts at all their settings.
pub struct Frontier {
    ours: Vec<Setting>,
    theirs: Vec<Setting>,
    /// For each of ours share right, joules a request, and those over the cheapest static
    /// setting's of the same quality; then for each of theirs the first two.
    figures: Vec<Figure>,
}

impl Frontier {
    /// Lets both live through the days.
    pub fn lived(scene: &Scene, days: &[Busy], bootstrap: Bootstrap) -> Result<Self, Failure> {
        let ours = PRICES.map(|price| (format!("price {price}"), Judgement::Metabolic { price }));
        let theirs = SHARES.map(|share| {
            let name = format!("large share {:.0} %", 100.0 * share);
            (name, frugal_threshold(scene, By::Gain, share))
        });
        let named: Vec<(String, Judgement)> = ours.into_iter().chain(theirs).collect();
        let hosts: Vec<_> = named.iter().map(|(_, j)| (*j, f64::INFINITY)).collect();
        let lived = scene.live(days, &hosts)?;
        let named = named.into_iter().zip(&lived);
        let settings = named.map(|((name, _), lived)| Setting {
            name,
            days: scores(lived, days),
        });
        let mut ours: Vec<Setting> = settings.collect();
        let theirs = ours.split_off(PRICES.len());
        let figures = figures(&ours, &theirs, days.len(), bootstrap);
        Ok(Self {
            ours,
            theirs,
            figures,
        })
    }

    fn of_ours(&self) -> impl Iterator<Item = (&Setting, &[Figure])> {
        self.ours.iter().zip(self.figures.chunks(3))
    }

    fn of_theirs(&self) -> impl Iterator<Item = (&Setting, &[Figure])> {
        let rest = &self.figures[3 * self.ours.len()..];
        self.theirs.iter().zip(rest.chunks(2))
    }

    /// The table.
    pub fn print(&self) {
        println!(
            "\nfrontier: share right, joules a request, and these over the cheapest static \
             router's that is right as often"
        );
        println!("  metabolic");
        for (setting, figures) in self.of_ours() {
            let ratio = match figures[2].value {
                Some(_) => shown(&figures[2], false),
                None => format!(
                    "no static setting is right as often (in {:.0} % of the rounds one is)",
                    100.0 * figures[2].defined_ratio
                ),
            };
            println!(
                "    {:<22}{:>26}{:>30}    {ratio}",
                setting.name,
                shown(&figures[0], false),
                shown(&figures[1], false),
            );
        }
        println!("  static router, by gain, few drafts");
        for (setting, figures) in self.of_theirs() {
            println!(
                "    {:<22}{:>26}{:>30}",
                setting.name,
                shown(&figures[0], false),
                shown(&figures[1], false),
            );
        }
    }

    /// Everything.
    pub fn as_json(&self) -> Value {
        let of = |(setting, figures): (&Setting, &[Figure])| {
            json!({
                "setting": setting.name,
                "correct_ratio": figures[0].json(),
                "joules_per_request": figures[1].json(),
                "over_cheapest_static_of_equal_quality": figures.get(2).map(Figure::json),
                "days": setting.days,
            })
        };
        json!({
            "metabolic": self.of_ours().map(of).collect::<Vec<_>>(),
            "static_router": self.of_theirs().map(of).collect::<Vec<_>>(),
        })
    }

    /// The picture.
    pub fn draw(&self, file: &Path) -> Result<(), Failure> {
        let line = |what: &str, name: &str, figures: Vec<&[Figure]>| {
            let of = |at: usize| figures.iter().map(move |f| f[at].value.unwrap_or(f64::NAN));
            let (x, values): (Vec<f64>, Vec<f64>) = of(0).map(|r| 100.0 * r).zip(of(1)).unzip();
            let band: Option<Vec<_>> = figures.iter().map(|f| f[1].interval).collect();
            Line {
                what: what.into(),
                name: name.into(),
                x,
                values,
                band: band.unwrap_or_default(),
            }
        };
        let panel = Panel {
            title: "what a share of right answers costs".into(),
            lines: vec![
                line(
                    "metabolic",
                    "metabolic, at six prices of energy",
                    self.of_ours().map(|(_, figures)| figures).collect(),
                ),
                line(
                    "static",
                    "static router, at eight thresholds",
                    self.of_theirs().map(|(_, figures)| figures).collect(),
                ),
            ],
            y: "joules of the machine for a request".into(),
            x: "requests that were answered right, %".into(),
        };
        let title = "Simulated days: joules against quality, the same days for all";
        write(file, &svg::page(title, &[panel]))
    }
}

fn figures(ours: &[Setting], theirs: &[Setting], days: usize, bootstrap: Bootstrap) -> Vec<Figure> {
    let place = |setting: &Setting, counts: &[u32]| {
        let sum = Score::sum(&setting.days, counts);
        let known = sum.requests > 0.0;
        known.then(|| (sum.correct / sum.requests, sum.joules / sum.requests))
    };
    let all = |counts: &[u32]| -> Vec<Option<f64>> {
        let static_points: Vec<(f64, f64)> =
            theirs.iter().filter_map(|s| place(s, counts)).collect();
        let of_ours = ours.iter().flat_map(|setting| {
            let (right, joules) = place(setting, counts).unzip();
            let rival = right.and_then(|right| cheapest(&static_points, right));
            let ratio = joules.zip(rival).map(|(joules, rival)| joules / rival);
            vec![right, joules, ratio]
        });
        let of_theirs = theirs.iter().flat_map(|setting| {
            let (right, joules) = place(setting, counts).unzip();
            vec![right, joules]
        });
        of_ours.chain(of_theirs).collect()
    };
    Figure::all(bootstrap, days, all)
}

/// Joules a request of the cheapest mix of two settings (share right, joules a request) that is
/// right at least this often: who has two thresholds can draw lots between them. `None` where
/// no setting is right so often.
fn cheapest(settings: &[(f64, f64)], right: f64) -> Option<f64> {
    let better = settings.iter().filter(|(r, _)| *r >= right);
    let mixes = better.flat_map(|&(above, dear)| {
        let worse = settings.iter().filter(move |(r, _)| *r < right);
        let mixed = worse.map(move |&(below, cheap)| {
            let share = (right - below) / (above - below);
            cheap + share * (dear - cheap)
        });
        std::iter::once(dear).chain(mixed)
    });
    mixes.min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_mix_of_two_settings_is_found_and_no_curve_is_extended() {
        let settings = [(0.6, 100.0), (0.7, 300.0), (0.8, 400.0), (0.75, 900.0)];
        let near = |right: f64, expected: f64| {
            let found = cheapest(&settings, right).expect("one is better");
            assert!((found - expected).abs() < 1e-9, "{right}: {found}");
        };
        // Half of the way from 0.6 to 0.8, below the point at 0.7.
        near(0.7, 250.0);
        near(0.8, 400.0);
        // Worse than all: the cheapest of all is right oftener.
        near(0.5, 100.0);
        near(0.6, 100.0);
        assert_eq!(cheapest(&settings, 0.81), None);
        assert_eq!(cheapest(&[], 0.5), None);
    }

    #[test]
    fn a_ratio_is_paired_by_day_and_undefined_above_the_best_static_setting() {
        let setting = |days: &[(f64, f64)]| Setting {
            name: String::new(),
            days: days
                .iter()
                .map(|(correct, joules)| Score {
                    requests: 10.0,
                    correct: *correct,
                    joules: *joules,
                    ..Score::default()
                })
                .collect(),
        };
        // One day costs twice the other; ours takes four fifths of theirs on each.
        let ours = [
            setting(&[(6.0, 80.0), (6.0, 160.0)]),
            setting(&[(9.0, 1.0); 2]),
        ];
        let theirs = [
            setting(&[(6.0, 100.0), (6.0, 200.0)]),
            setting(&[(8.0, 300.0), (8.0, 600.0)]),
        ];
        let bootstrap = Bootstrap {
            rounds: 200,
            seed: 1,
        };
        let found = figures(&ours, &theirs, 2, bootstrap);
        assert_eq!(found.len(), 2 * 3 + 2 * 2);
        let ratio = found[2].interval.expect("an interval");
        assert!((found[2].value.expect("a ratio") - 0.8).abs() < 1e-9);
        assert!((ratio.low - 0.8).abs() < 1e-9 && (ratio.high - 0.8).abs() < 1e-9);
        let joules = found[1].interval.expect("an interval");
        assert!((joules.low - 8.0).abs() < 1e-9 && (joules.high - 16.0).abs() < 1e-9);
        assert!(found[5].value.is_none() && found[5].interval.is_none());
        assert_eq!((found[2].defined_ratio, found[5].defined_ratio), (1.0, 0.0));
        // Right as often as ours on both days together, and not where the second is drawn twice.
        let ours = [setting(&[(8.0, 100.0); 2])];
        let theirs = [setting(&[(9.0, 200.0), (7.0, 200.0)])];
        let found = figures(&ours, &theirs, 2, bootstrap);
        let ratio = &found[2];
        assert_eq!((ratio.value, ratio.interval), (Some(0.5), None));
        let defined = ratio.defined_ratio;
        assert!((defined - 0.75).abs() < 0.1, "{defined}");
    }
}
