//! Every refusal, in the shape that OpenAI clients understand.
//!
//! One place decides which status, type and code a client sees, so that the same fault
//! looks the same on every path. It refuses to leak internals: the text of an error is
//! written for the person who made the request.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use homeostat_cascade::{Refused, TierError, TierFault};
use homeostat_hooks::{Refusal, Rejection};
use serde::Serialize;

/// A refusal with its status.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    pub status: StatusCode,
    /// OpenAI's `type`, such as `invalid_request_error`.
    pub kind: &'static str,
    pub message: String,
    /// The parameter at fault, as a path such as `messages[0].content`.
    pub param: Option<String>,
    /// For programs, such as `context_length_exceeded`.
    pub code: Option<String>,
    pub retry_after_ms: Option<u32>,
}

impl ApiError {
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after_ms: None,
        }
    }

    /// The client's fault, in this parameter.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            code: Some("invalid_value".into()),
            ..Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
        }
    }

    /// The client asks for something that this server does not do.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: Some("unsupported_parameter".into()),
            ..Self::invalid(param, message)
        }
    }

    /// The client's fault, in no single parameter.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub fn unknown_model(name: &str, known: &[String]) -> Self {
        Self {
            param: Some("model".into()),
            code: Some("model_not_found".into()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!(
                    "there is no model {}; known models: {}",
                    shown(name),
                    known.join(", ")
                ),
            )
        }
    }

    pub fn host(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub fn code(mut self, code: &str) -> Self {
        self.code = Some(code.into());
        self
    }

    pub fn retry_after(mut self, ms: u32) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// The JSON of this error, also used as the last event of a broken stream.
    pub fn body(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            message: &'a str,
            r#type: &'a str,
            param: Option<&'a str>,
            code: Option<&'a str>,
        }
        let body = Body {
            error: Inner {
                message: &self.message,
                r#type: self.kind,
                param: self.param.as_deref(),
                code: self.code.as_deref(),
            },
        };
        serde_json::to_string(&body).expect("strings and nulls always serialise")
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(ms) = self.retry_after_ms {
            // `Retry-After` counts whole seconds; OpenAI's client reads the other first.
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(ms.div_ceil(1000).max(1)),
            );
            headers.insert(
                HeaderName::from_static("retry-after-ms"),
                HeaderValue::from(ms),
            );
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        headers
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, self.headers(), self.body()).into_response()
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Policy(rejection) => rejection.into(),
            Refused::Tier(error) => error.into(),
            Refused::UnknownModel { name, mut known } => {
                known.insert(0, "auto".into());
                Self::unknown_model(&name, &known)
            }
        }
    }
}

impl From<Rejection> for ApiError {
    fn from(r: Rejection) -> Self {
        let (status, kind, code) = match r.kind {
            Refusal::Overloaded => (503, "overloaded_error", "overloaded"),
            Refusal::BudgetExhausted => (429, "rate_limit_error", "budget_exhausted"),
            Refusal::NotAllowed => (403, "permission_error", "not_allowed"),
            Refusal::Unsupported => (400, "invalid_request_error", "unsupported"),
            // Asking again gives the same doubt, so this is none of the statuses that
            // clients retry by themselves.
            Refusal::Unreliable => (422, "policy_refusal", "unreliable"),
        };
        let status = StatusCode::from_u16(status).expect("literals above are valid");
        Self {
            retry_after_ms: r.retry_after_ms,
            ..Self::new(status, kind, r.message).code(code)
        }
    }
}

impl From<TierError> for ApiError {
    fn from(e: TierError) -> Self {
        let (status, kind) = match (e.fault, e.code) {
            (TierFault::Client, _) => (StatusCode::BAD_REQUEST, "invalid_request_error"),
            (_, "queue_full") => (StatusCode::TOO_MANY_REQUESTS, "overloaded_error"),
            (_, "budget_exhausted") => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
            (TierFault::Tier, _) if e.retryable => {
                (StatusCode::SERVICE_UNAVAILABLE, "overloaded_error")
            }
            (TierFault::Tier, _) => (StatusCode::BAD_GATEWAY, "server_error"),
            (TierFault::Host, _) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
        };
        let waits = e.retryable && status != StatusCode::INTERNAL_SERVER_ERROR;
        Self {
            retry_after_ms: e.retry_after_ms.or(waits.then_some(1000)),
            ..Self::new(status, kind, e.message).code(e.code)
        }
    }
}

/// A client's value as an error may quote it: in quotes, cut.
pub fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut cut: String = text.chars().take(CHARS_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier_error(fault: TierFault, code: &'static str, retryable: bool) -> ApiError {
        TierError {
            fault,
            code,
            message: "m".into(),
            retryable,
            retry_after_ms: None,
        }
        .into()
    }

    #[test]
    fn an_error_has_all_four_fields_even_when_they_are_null() {
        let e = ApiError::bad_request("no \"body\"");
        assert_eq!(
            e.body(),
            r#"{"error":{"message":"no \"body\"","type":"invalid_request_error","param":null,"code":null}}"#
        );
    }

    #[test]
    fn whose_fault_it_is_decides_the_status() {
        use TierFault::{Client, Host, Tier};
        let status = |f, c, r| tier_error(f, c, r).status.as_u16();
        assert_eq!(status(Client, "context_length_exceeded", false), 400);
        assert_eq!(status(Tier, "queue_full", true), 429);
        assert_eq!(status(Tier, "budget_exhausted", true), 429);
        assert_eq!(status(Tier, "unavailable", true), 503);
        assert_eq!(status(Tier, "upstream_auth", false), 502);
        assert_eq!(status(Host, "internal_error", true), 500);
    }

    #[test]
    fn a_refusal_that_may_pass_says_when_to_come_back() {
        let response = tier_error(TierFault::Tier, "queue_full", true).into_response();
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["retry-after-ms"], "1000");
    }

    #[test]
    fn a_long_value_is_quoted_only_in_part() {
        let text = shown(&"x".repeat(1000));
        assert!(text.chars().count() < 90, "{text}");
    }
}
