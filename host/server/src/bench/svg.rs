//! Curves as a picture: SVG that a person can read without a program of ours.

use std::fmt::Write;

use super::bootstrap::Interval;

/// One diagram.
pub struct Panel {
    /// Above it.
    pub title: String,
    /// The first is the one that the picture is about: thick, with its band.
    pub lines: Vec<Line>,
    /// What is up.
    pub y: String,
    /// What is to the right; the axis goes from 0 to 100 if no line says where its values stand.
    pub x: String,
}

/// One curve.
pub struct Line {
    /// What is drawn: the same in every diagram of a page has the same colour.
    pub what: String,
    /// For the legend.
    pub name: String,
    /// Where each value stands on the axis; empty = at equal steps from edge to edge.
    pub x: Vec<f64>,
    /// Values.
    pub values: Vec<f64>,
    /// Interval of each value; empty = none.
    pub band: Vec<Interval>,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 64.0;
const LEGEND_LINE: f64 = 18.0;

/// Colours that people with any colour vision can tell apart (Okabe, Ito).
pub const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
];
pub const DASHES: [&str; 7] = ["", "7 3", "2 3", "9 3 2 3", "4 4", "1 2", "12 4"];

/// Diagrams side by side.
pub fn page(title: &str, panels: &[Panel]) -> String {
    let lines = panels.iter().map(|p| p.lines.len()).max().unwrap_or(0);
    let width = LEFT + (WIDTH + LEFT) * panels.len() as f64;
    let height = TOP + HEIGHT + 64.0 + LEGEND_LINE * lines as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"17\">{}</text>\n",
        escaped(title)
    );
    let mut styles: Vec<&str> = Vec::new();
    for line in panels.iter().flat_map(|panel| &panel.lines) {
        if !styles.contains(&line.what.as_str()) {
            styles.push(&line.what);
        }
    }
    for (i, panel) in panels.iter().enumerate() {
        let left = LEFT + (WIDTH + LEFT) * i as f64;
        let _ = writeln!(out, "<g transform=\"translate({left} {TOP})\">");
        draw(&mut out, panel, &styles);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// The lowest and the highest round number that hold all values, and the step between two.
fn limits(panel: &Panel) -> (f64, f64, f64) {
    round_limits(
        panel
            .lines
            .iter()
            .flat_map(|line| line.values.iter().copied()),
    )
}

/// The same of any values.
pub fn round_limits(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let ends = (f64::INFINITY, f64::NEG_INFINITY);
    let (low, high) = values.fold(ends, |(low, high), v| (low.min(v), high.max(v)));
    if !(low.is_finite() && high.is_finite()) {
        return (0.0, 1.0, 0.25);
    }
    let raw = (high - low).max(1e-6) / 5.0;
    let power = 10f64.powf(raw.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps.into_iter().find(|s| s * power >= raw).unwrap_or(10.0) * power;
    // A value on a round number is not beyond it by a rounding error.
    let low = (low / step + 1e-6).floor() * step;
    let high = (high / step - 1e-6).ceil() * step;
    (low, high.max(low + step), step)
}

/// The ends of the axis to the right, and the step between two numbers.
#[derive(Clone, Copy)]
struct Axis {
    left: f64,
    right: f64,
    step: f64,
}

impl Axis {
    fn of(panel: &Panel) -> Self {
        let mut told = panel.lines.iter().flat_map(|line| &line.x).peekable();
        let is_told = told.peek().is_some();
        let (left, right, step) = match is_told {
            true => round_limits(told.copied()),
            false => (0.0, 100.0, 20.0),
        };
        Self { left, right, step }
    }

    /// Place of a value.
    fn at(self, value: f64) -> f64 {
        WIDTH * (value - self.left) / (self.right - self.left)
    }

    /// Place of the `i`th value of a line.
    fn place(self, line: &Line, i: usize) -> f64 {
        match line.x.get(i) {
            Some(value) => self.at(*value),
            None => WIDTH * i as f64 / (line.values.len().max(2) - 1) as f64,
        }
    }

    fn numbers(self, out: &mut String) {
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        for i in 0..=((self.right - self.left) / self.step).round() as u32 {
            let value = self.left + f64::from(i) * self.step;
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value:.digits$}</text>",
                self.at(value),
                HEIGHT + 16.0
            );
        }
    }
}

fn draw(out: &mut String, panel: &Panel, styles: &[&str]) {
    let axis = Axis::of(panel);
    let (low, high, step) = limits(panel);
    let y = |value: f64| HEIGHT - (value - low) / (high - low) * HEIGHT;
    let _ = writeln!(
        out,
        "<text x=\"0\" y=\"-10\" font-size=\"14\">{}</text>",
        escaped(&panel.title)
    );
    let steps = ((high - low) / step).round() as u32;
    for i in 0..=steps {
        let value = low + f64::from(i) * step;
        let at = y(value);
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let _ = writeln!(
            out,
            "<line x1=\"0\" y1=\"{at:.1}\" x2=\"{WIDTH}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{value:.digits$}</text>",
            at + 4.0
        );
    }
    axis.numbers(out);
    let _ = writeln!(
        out,
        "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#888888\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text transform=\"translate(-46 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        WIDTH / 2.0,
        HEIGHT + 34.0,
        escaped(&panel.x),
        HEIGHT / 2.0,
        escaped(&panel.y)
    );
    if let Some(first) = panel.lines.first() {
        band(out, first, axis, |value| y(value.clamp(low, high)));
    }
    // The first line is drawn last, above the others.
    for (i, line) in panel.lines.iter().enumerate().rev() {
        let style = styles.iter().position(|what| *what == line.what);
        curve(out, (i, style.unwrap_or(i)), line, axis, y);
    }
}

fn band(out: &mut String, line: &Line, axis: Axis, y: impl Fn(f64) -> f64) {
    // A band with a gap belongs to no place.
    if line.band.len() < 2 || line.band.len() != line.values.len() {
        return;
    }
    let point = |i: usize, value: f64| format!("{:.1},{:.1}", axis.place(line, i), y(value));
    let above = line.band.iter().enumerate().map(|(i, b)| point(i, b.high));
    let below = line
        .band
        .iter()
        .enumerate()
        .rev()
        .map(|(i, b)| point(i, b.low));
    let points: Vec<String> = above.chain(below).collect();
    let _ = writeln!(
        out,
        "<polygon points=\"{}\" fill=\"{}\" fill-opacity=\"0.13\"/>",
        points.join(" "),
        COLOURS[0]
    );
}

/// The line and its line of the legend, with its place there and its style.
fn curve(
    out: &mut String,
    (i, style): (usize, usize),
    line: &Line,
    axis: Axis,
    y: impl Fn(f64) -> f64,
) {
    let values = line.values.iter().enumerate();
    let points: Vec<String> = values
        .filter(|(_, value)| value.is_finite())
        .map(|(at, value)| format!("{:.1},{:.1}", axis.place(line, at), y(*value)))
        .collect();
    let style = format!(
        "fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" stroke-dasharray=\"{}\"",
        COLOURS[style % COLOURS.len()],
        if i == 0 { 2.6 } else { 1.5 },
        DASHES[style % DASHES.len()]
    );
    let at = HEIGHT + 56.0 + LEGEND_LINE * i as f64;
    let note = if i == 0 && !line.band.is_empty() {
        ", with its 95 % interval"
    } else {
        ""
    };
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" {style}/>\
         <line x1=\"0\" y1=\"{:.1}\" x2=\"34\" y2=\"{:.1}\" {style}/>\
         <text x=\"42\" y=\"{at:.1}\">{}{note}</text>",
        points.join(" "),
        at - 4.0,
        at - 4.0,
        escaped(&line.name)
    );
}

/// Text as it may stand in a picture.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(values: &[f64]) -> Panel {
        Panel {
            title: "a < b".into(),
            lines: vec![Line {
                what: "ours".into(),
                name: "ours & theirs".into(),
                x: Vec::new(),
                values: values.to_vec(),
                band: vec![
                    Interval {
                        low: 0.6,
                        high: 0.7
                    };
                    values.len()
                ],
            }],
            y: "quality".into(),
            x: "share".into(),
        }
    }

    #[test]
    fn a_page_holds_every_curve_from_edge_to_edge_and_escapes_what_people_wrote() {
        let page = page("title", &[panel(&[0.6, 0.7, 0.8]), panel(&[1.0, 1.0, 1.0])]);
        assert_eq!(page.matches("<polyline").count(), 2);
        // The axis goes from 0.6 to 0.8: bottom left, middle, top right.
        let points = "points=\"0.0,300.0 230.0,150.0 460.0,0.0\"";
        assert!(page.contains(points), "{page}");
        assert!(page.contains("a &lt; b") && page.contains("ours &amp; theirs"));
        assert!(page.matches("<g ").count() == 2 && page.matches("</g>").count() == 2);
    }

    #[test]
    fn values_stand_where_their_line_says() {
        let mut panel = panel(&[1.0, 2.0]);
        panel.lines[0].x = vec![70.0, 78.0];
        let axis = Axis::of(&panel);
        assert_eq!((axis.left, axis.right, axis.step), (70.0, 78.0, 2.0));
        let page = page("title", &[panel]);
        assert!(page.contains("points=\"0.0,300.0 460.0,0.0\""), "{page}");
        assert!(page.contains(">72</text>") && !page.contains(">100</text>"));
    }

    #[test]
    fn an_axis_has_round_ends_that_hold_all_values() {
        let near = |values: &[f64], expected: (f64, f64, f64)| {
            let found = limits(&panel(values));
            let off = (found.0 - expected.0).abs() + (found.1 - expected.1).abs();
            assert!(off + (found.2 - expected.2).abs() < 1e-9, "{found:?}");
        };
        near(&[0.68, 0.81], (0.65, 0.85, 0.05));
        near(&[8.03, 9.4], (8.0, 9.5, 0.5));
        near(&[0.6, 0.8], (0.6, 0.8, 0.05));
        near(&[], (0.0, 1.0, 0.25));
    }
}
