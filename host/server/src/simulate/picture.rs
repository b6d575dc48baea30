//! A day of several hosts as one picture, and as the numbers behind it: temperature, power,
//! which tier answers, who waits, what a right answer costs.

use std::fmt::Write;

use homeostat_hooks::MetabolicState;
use serde_json::{Value, json};

use super::compare::Shown;
use super::day::Day;
use super::life::{Ended, TICKS_PER_POINT};
use super::machine::TICK_MS;
use crate::bench::svg::{COLOURS, DASHES, escaped, round_limits};

const POINT_MS: u64 = TICKS_PER_POINT * TICK_MS;
/// What a right answer costs is told of the last so many points: two hours.
const TRAILING: usize = 12;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 130.0;
const LEFT: f64 = 76.0;
const TOP: f64 = 96.0;
const GAP: f64 = 34.0;

/// A line over the day; `None` where there is nothing to tell.
type Line = Vec<Option<f64>>;

/// What one diagram shows.
struct Panel {
    title: &'static str,
    line: fn(&Shown, usize) -> Line,
    /// Drawn across: a limit.
    limit: Option<f64>,
}

const PANELS: [Panel; 6] = [
    Panel {
        title: "hottest °C of the chip in ten minutes (it slows down at 95)",
        line: |shown, count| points(shown, count, |p| p.celsius),
        limit: Some(95.0),
    },
    Panel {
        title: "power, W",
        line: |shown, count| points(shown, count, |p| p.watts),
        limit: None,
    },
    Panel {
        title: "answers of the large tier, % (of the last hour)",
        line: large_percent,
        limit: None,
    },
    Panel {
        title: "requests that wait or run, mean",
        line: |shown, count| points(shown, count, |p| p.requests),
        limit: None,
    },
    Panel {
        title: "time to the first token, s, median of ten minutes",
        line: ttft_s,
        limit: None,
    },
    Panel {
        title: "joules of the machine for a right answer (of the last two hours)",
        line: joules_per_correct,
        limit: None,
    },
];

fn points(shown: &Shown, count: usize, value: fn(&super::life::Point) -> f64) -> Line {
    let points = shown.lived.points.iter().take(count);
    points
        .map(|p| Some(value(p)).filter(|v| v.is_finite()))
        .collect()
}

/// The requests of the `width` points that end with each point.
fn trailing(shown: &Shown, point: usize, width: usize) -> impl Iterator<Item = &Ended> {
    let end = (point as u64 + 1) * POINT_MS;
    let begin = end.saturating_sub(width as u64 * POINT_MS);
    let ended = shown.lived.ended.iter();
    ended.filter(move |e| (begin..end).contains(&e.at_ms))
}

fn large_percent(shown: &Shown, count: usize) -> Line {
    let one = |point| {
        let answered = trailing(shown, point, 6).filter_map(|e| e.tier);
        let (large, all) = answered.fold((0.0, 0.0), |(large, all), tier| {
            (large + f64::from(u8::from(tier == 1)), all + 1.0)
        });
        (all > 0.0).then(|| 100.0 * large / all)
    };
    (0..count).map(one).collect()
}

fn ttft_s(shown: &Shown, count: usize) -> Line {
    let one = |point| {
        let all: Vec<Ended> = trailing(shown, point, 1).copied().collect();
        super::score::ttft_ms(&all, 0.5).map(|ms| f64::from(ms) / 1e3)
    };
    (0..count).map(one).collect()
}

fn joules_per_correct(shown: &Shown, count: usize) -> Line {
    let one = |point: usize| {
        let begin = (point + 1).saturating_sub(TRAILING);
        let watts = shown
            .lived
            .points
            .get(begin..=point)?
            .iter()
            .map(|p| p.watts);
        let joules = watts.sum::<f64>() * POINT_MS as f64 / 1e3;
        let correct = trailing(shown, point, TRAILING)
            .filter(|e| e.is_right)
            .count();
        (correct > 0).then(|| joules / correct as f64)
    };
    (0..count).map(one).collect()
}

/// Points of the day itself, without the time in which the last requests end.
fn count(day: &Day) -> usize {
    (day.ms() / POINT_MS) as usize
}

/// All lines of one host, and its state.
pub fn series(shown: &Shown) -> Value {
    let count = shown.lived.points.len();
    let rounded = |line: Line| {
        let value = |v: Option<f64>| v.map(|v| (v * 100.0).round() / 100.0);
        line.into_iter().map(value).collect::<Vec<_>>()
    };
    let states: Vec<MetabolicState> = shown.lived.points.iter().map(|p| p.state).collect();
    let lines: Vec<Value> = PANELS
        .iter()
        .map(|panel| json!({"what": panel.title, "values": rounded((panel.line)(shown, count))}))
        .collect();
    json!({"lines": lines, "worst_state": states})
}

/// The picture.
pub fn page(day: &Day, shown: &[Shown]) -> String {
    let panels = PANELS.len() as f64;
    let states = 16.0 * shown.len() as f64;
    let legend = 18.0 * shown.len() as f64;
    let width = LEFT + WIDTH + 24.0;
    let height = TOP + panels * (HEIGHT + GAP) + states + legend + 60.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"17\">One simulated day of {} hosts: the same \
         requests, the same air</text>\n\
         <text x=\"{LEFT}\" y=\"46\">{}</text>\n",
        shown.len(),
        escaped(&format!(
            "seed {}, {} requests; machine and people are simulated, right and wrong answers are \
             recorded ones",
            day.seed,
            shown.first().map_or(0, |s| s.lived.ended.len())
        )),
    );
    events(&mut out, day, panels * (HEIGHT + GAP) + states);
    for (i, panel) in PANELS.iter().enumerate() {
        let top = TOP + (HEIGHT + GAP) * i as f64;
        let _ = writeln!(out, "<g transform=\"translate({LEFT} {top})\">");
        draw(&mut out, panel, day, shown);
        out.push_str("</g>\n");
    }
    let top = TOP + panels * (HEIGHT + GAP);
    let _ = writeln!(out, "<g transform=\"translate({LEFT} {top})\">");
    state_strips(&mut out, day, shown);
    legends(&mut out, shown, states + 36.0);
    out.push_str("</g>\n</svg>\n");
    out
}

fn x(day: &Day, hour: f64) -> f64 {
    WIDTH * hour / day.hours
}

/// What happens, behind everything.
fn events(out: &mut String, day: &Day, height: f64) {
    for (i, (name, span)) in day.events().into_iter().enumerate() {
        let (from, to) = (x(day, span.from_h), x(day, span.to_h));
        // Two that overlap have their names on two lines.
        let line = 72.0 + 14.0 * (i % 2) as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{height:.1}\" \
             fill=\"#8c8c8c\" fill-opacity=\"0.13\"/>\
             <text x=\"{:.1}\" y=\"{line}\" text-anchor=\"middle\">{}</text>",
            LEFT + from,
            to - from,
            LEFT + (from + to) / 2.0,
            escaped(name),
        );
    }
}

fn draw(out: &mut String, panel: &Panel, day: &Day, shown: &[Shown]) {
    let lines: Vec<Line> = shown.iter().map(|s| (panel.line)(s, count(day))).collect();
    let values = lines.iter().flatten().flatten().copied();
    let (low, high, step) = round_limits(values.chain(panel.limit));
    let y = |value: f64| HEIGHT - (value - low) / (high - low) * HEIGHT;
    let _ = writeln!(
        out,
        "<text x=\"0\" y=\"-7\" font-size=\"13\">{}</text>",
        panel.title
    );
    let digits = (-step.log10().floor()).max(0.0) as usize;
    for i in 0..=((high - low) / step).round() as u32 {
        let value = low + f64::from(i) * step;
        let at = y(value);
        let _ = writeln!(
            out,
            "<line x1=\"0\" y1=\"{at:.1}\" x2=\"{WIDTH}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{value:.digits$}</text>",
            at + 4.0
        );
    }
    hours(out, day, HEIGHT);
    if let Some(limit) = panel.limit {
        let at = y(limit);
        let _ = writeln!(
            out,
            "<line x1=\"0\" y1=\"{at:.1}\" x2=\"{WIDTH}\" y2=\"{at:.1}\" stroke=\"#cc0000\"/>"
        );
    }
    let _ = writeln!(
        out,
        "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#888888\"/>"
    );
    for (i, line) in lines.iter().enumerate() {
        let known: Vec<(usize, Option<f64>)> = line.iter().copied().enumerate().collect();
        for piece in known.split(|(_, value)| value.is_none()) {
            let point = |(at, value): &(usize, Option<f64>)| {
                let hour = *at as f64 * POINT_MS as f64 / 3.6e6;
                format!("{:.1},{:.1}", x(day, hour), y(value.unwrap_or(low)))
            };
            let points: Vec<String> = piece.iter().map(point).collect();
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" {}/>",
                points.join(" "),
                style(i)
            );
        }
    }
}

fn hours(out: &mut String, day: &Day, under: f64) {
    let mut hour = 0.0;
    while hour <= day.hours {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666666\">{hour:02}:00</text>",
            x(day, hour),
            under + 14.0
        );
        hour += 3.0;
    }
}

fn style(host: usize) -> String {
    format!(
        "fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\" stroke-dasharray=\"{}\"",
        COLOURS[host % COLOURS.len()],
        DASHES[host % DASHES.len()]
    )
}

/// The worst state of every ten minutes, a strip for each host.
fn state_strips(out: &mut String, day: &Day, shown: &[Shown]) {
    let _ = writeln!(
        out,
        "<text x=\"0\" y=\"-7\" font-size=\"13\">state: nominal white, elevated yellow, \
         constrained orange, critical red</text>"
    );
    for (host, one) in shown.iter().enumerate() {
        let y = 16.0 * host as f64;
        let width = x(day, POINT_MS as f64 / 3.6e6);
        for (at, point) in one.lived.points.iter().take(count(day)).enumerate() {
            let colour = match point.state {
                MetabolicState::Nominal => continue,
                MetabolicState::Elevated => "#f0e442",
                MetabolicState::Constrained => "#e69f00",
                MetabolicState::Critical => "#d55e00",
            };
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{y}\" width=\"{width:.2}\" height=\"13\" fill=\"{colour}\"/>",
                width * at as f64
            );
        }
        let _ = writeln!(
            out,
            "<rect y=\"{y}\" width=\"{WIDTH}\" height=\"13\" fill=\"none\" stroke=\"#888888\"/>\
             <line x1=\"-40\" y1=\"{0}\" x2=\"-6\" y2=\"{0}\" {1}/>",
            y + 7.0,
            style(host)
        );
    }
}

fn legends(out: &mut String, shown: &[Shown], top: f64) {
    for (host, one) in shown.iter().enumerate() {
        let y = top + 18.0 * host as f64;
        let score = &one.score;
        let each = |value: Option<f64>| value.map_or("–".into(), |v| format!("{v:.0}"));
        let _ = writeln!(
            out,
            "<line x1=\"0\" y1=\"{0:.1}\" x2=\"34\" y2=\"{0:.1}\" {1}/>\
             <text x=\"42\" y=\"{y:.1}\">{2}</text>",
            y - 4.0,
            style(host),
            escaped(&format!(
                "{}: {:.1} W mean, {} J a right answer, {:.1} % of all requests right, {:.0} s \
                 slowed down by heat, {:.0} s without power",
                one.name,
                score.watts(),
                each((super::score::MEASURES[0].1)(score)),
                100.0 * score.correct / score.requests.max(1.0),
                score.throttled_s,
                score.off_s,
            )),
        );
    }
}
