//! The model's own way of writing a conversation, from the Jinja template in its file.
//!
//! It exists because a chat model answers well only to the exact text it was trained on, and
//! that text is in the file. A template is a program, so it runs with bounded fuel and without
//! any loader; it refuses to look at a clock: the time comes in.
//!
//! The fuel bounds a template's time, and nothing bounds its memory: each `~` may double a text,
//! so forty instructions ask for a terabyte, and a process that is refused memory in the middle of
//! the library ends. A conversation that was tried beforehand proves nothing, since a template may
//! wait for another. So who serves a model file trusts its template.
//!
//! Source of the extensions (`raise_exception`, `strftime_now`, Python's methods, a `tojson`
//! that does not escape for HTML): what Hugging Face's `apply_chat_template` offers.

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::Serialize;

/// Instructions a template may execute: a bound of its time, not of its memory. A conversation of a
/// thousand messages takes about 30,000.
const FUEL: u64 = 10_000_000;

/// One message of a conversation. `role` is what the template knows: system, user, assistant, tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ChatMessage {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            name: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The client's fault: the template itself refused these messages.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The client's fault: there is nothing to render.
    #[error("the conversation has no messages")]
    Empty,
    /// The model's fault: its template is wrong or needs something this host does not offer.
    #[error("the model's chat template failed: {0}")]
    Broken(String),
    /// The model's fault: a plain completion is all it can do.
    #[error("the model file has no chat template; use plain completions")]
    Missing,
}

pub struct ChatTemplate {
    environment: Environment<'static>,
    begin_text: String,
    end_text: String,
}

/// What `raise_exception` puts before its message, to be told from other errors.
const REFUSAL: &str = "refused by the template: ";

impl ChatTemplate {
    pub fn new(
        source: &str,
        begin_text: Option<&str>,
        end_text: Option<&str>,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("{REFUSAL}{message}"),
                ))
            },
        );
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|e| TemplateError::Broken(format!("{e:#}")))?;
        let text = |t: Option<&str>| t.unwrap_or_default().to_owned();
        Ok(Self {
            environment,
            begin_text: text(begin_text),
            end_text: text(end_text),
        })
    }

    /// The text of the conversation. `add_generation_prompt` opens the assistant's turn, and
    /// `answer_prefix` is what the answer already begins with. `unix_seconds` is the time that
    /// `strftime_now` tells, in UTC.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        answer_prefix: Option<&str>,
        unix_seconds: u64,
    ) -> Result<String, TemplateError> {
        if messages.is_empty() {
            return Err(TemplateError::Empty);
        }
        let strftime_now =
            Value::from_function(move |format: String| strftime(&format, unix_seconds));
        let template = self.environment.get_template("chat").map_err(blame)?;
        let mut text = template
            .render(context! {
                messages => messages,
                add_generation_prompt => add_generation_prompt,
                bos_token => self.begin_text,
                eos_token => self.end_text,
                strftime_now => strftime_now,
            })
            .map_err(blame)?;
        text.push_str(answer_prefix.unwrap_or_default());
        Ok(text)
    }
}

fn blame(error: Error) -> TemplateError {
    match error
        .detail()
        .and_then(|detail| detail.strip_prefix(REFUSAL))
    {
        Some(message) => TemplateError::Refused(message.to_owned()),
        None => TemplateError::Broken(format!("{error:#}")),
    }
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it, where templates notice: no HTML escapes.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let fail = |e: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, e.to_string());
    let Some(indent) = indent.map(|n| n.min(16)) else {
        return serde_json::to_string(value)
            .map(Value::from_safe_string)
            .map_err(|e| fail(&e));
    };
    let spaces = vec![b' '; indent];
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
    value
        .serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, formatter,
        ))
        .map_err(|e| fail(&e))?;
    String::from_utf8(out)
        .map(Value::from_safe_string)
        .map_err(|e| fail(&e))
}

/// The few codes that templates use; an unknown one is an error, not silence.
fn strftime(format: &str, unix_seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil_from_days(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('H') => out += &format!("{:02}", second / 3_600),
            Some('M') => out += &format!("{:02}", second / 60 % 60),
            Some('S') => out += &format!("{:02}", second % 60),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('%') => out.push('%'),
            other => {
                let problem = format!("strftime_now does not know %{}", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
    }
    Ok(out)
}

/// Year, month, day of a day counted from 1970-01-01 (Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms").
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, TemplateError> {
        let messages = [ChatMessage::new("user", "<hi> & \"you\"")];
        ChatTemplate::new(source, Some("<s>"), Some("</s>"))?.render(
            &messages,
            true,
            None,
            1_790_000_000,
        )
    }

    #[test]
    fn templates_find_what_they_expect_from_python() {
        let table = [
            ("{{ messages[0]['content'].strip('<') }}", "hi> & \"you\""),
            (
                "{{ messages[0].role.upper() }}{{ bos_token }}{{ eos_token }}",
                "USER<s></s>",
            ),
            (
                "{{ messages[0].content | tojson }}",
                "\"<hi> & \\\"you\\\"\"",
            ),
            (
                "{{ {'a': [1]} | tojson(indent=2) }}",
                "{\n  \"a\": [\n    1\n  ]\n}",
            ),
            (
                "{{ strftime_now('%d %b %Y, %A %H:%M:%S') }}",
                "21 Sep 2026, Monday 14:13:20",
            ),
            ("{% if add_generation_prompt %}\nyes{% endif %}", "yes"),
        ];
        for (source, expected) in table {
            assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn a_refusal_is_the_clients_and_a_defect_the_models_fault() {
        let refused = render("{{ raise_exception('roles must alternate') }}");
        assert_eq!(
            refused,
            Err(TemplateError::Refused("roles must alternate".into()))
        );
        for broken in [
            "{% if %}",
            "{{ nothing_like_this() }}",
            "{{ strftime_now('%Q') }}",
            "{{ 1 | no_such_filter }}",
        ] {
            assert!(
                matches!(render(broken), Err(TemplateError::Broken(_))),
                "{broken}"
            );
        }
        let template = ChatTemplate::new("x", None, None).expect("valid");
        assert_eq!(
            template.render(&[], true, None, 0),
            Err(TemplateError::Empty)
        );
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        let Err(TemplateError::Broken(message)) = render(endless) else {
            panic!("it must not finish")
        };
        assert!(message.contains("fuel"), "{message}");
    }

    #[test]
    fn the_answer_prefix_continues_the_assistants_turn() {
        let template = ChatTemplate::new("{{ messages[0].content }}|", None, None).expect("valid");
        let text = template.render(
            &[ChatMessage::new("user", "q")],
            true,
            Some("The answer"),
            0,
        );
        assert_eq!(text.as_deref(), Ok("q|The answer"));
    }
}
