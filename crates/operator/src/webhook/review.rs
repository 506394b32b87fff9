//! `AdmissionReview`, `admission.k8s.io/v1`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Kubernetes shows a warning of 256 characters or less whole, and cuts all of them above 4096 together.
const WARNING_CHARS_MAX: usize = 256;
const WARNINGS_MAX: usize = 15;
/// A status message may be long, but nobody reads a page.
const MESSAGE_CHARS_MAX: usize = 4096;

/// What the API server asks.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    uid: &'a str,
    value: &'a Value,
}

impl<'a> Request<'a> {
    /// Reads a review.
    pub(crate) fn new(review: &'a Value) -> Result<Self, &'static str> {
        let version = review.get("apiVersion").and_then(Value::as_str);
        if review.get("kind").and_then(Value::as_str) != Some("AdmissionReview")
            || version != Some("admission.k8s.io/v1")
        {
            return Err("not an AdmissionReview of admission.k8s.io/v1");
        }
        let value = review.get("request").ok_or("the review has no request")?;
        let uid = value
            .get("uid")
            .and_then(Value::as_str)
            .ok_or("the request has no uid")?;
        Ok(Self { uid, value })
    }

    fn text(&self, key: &str) -> &'a str {
        self.value.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn namespace(&self) -> &'a str {
        self.text("namespace")
    }

    pub(crate) fn operation(&self) -> &'a str {
        self.text("operation")
    }

    /// The object as it shall be, absent on DELETE.
    pub(crate) fn object(&self) -> Option<&'a Value> {
        self.value.get("object").filter(|object| !object.is_null())
    }

    /// The object as it is.
    pub(crate) fn old_object(&self) -> Option<&'a Value> {
        self.value.get("oldObject").filter(|object| !object.is_null())
    }

    pub(crate) fn allowed(&self, warnings: &[String]) -> Value {
        self.answer(json!({"uid": self.uid, "allowed": true}), warnings)
    }

    pub(crate) fn patched(&self, operations: &[Value], warnings: &[String]) -> Value {
        let mut response = json!({"uid": self.uid, "allowed": true});
        if let (false, Some(members)) = (operations.is_empty(), response.as_object_mut()) {
            let patch = STANDARD.encode(Value::from(operations).to_string());
            members.insert("patchType".to_owned(), json!("JSONPatch"));
            members.insert("patch".to_owned(), json!(patch));
        }
        self.answer(response, warnings)
    }

    pub(crate) fn refused(&self, refusal: &Refused, warnings: &[String]) -> Value {
        let causes: Vec<Value> = refusal
            .causes
            .iter()
            .map(|cause| json!({"reason": cause.reason, "message": cause.message, "field": cause.field}))
            .collect();
        let status = json!({
            "status": "Failure",
            "code": refusal.code,
            "reason": refusal.reason,
            "message": cut(&refusal.message, MESSAGE_CHARS_MAX),
            "details": {"causes": causes},
        });
        self.answer(
            json!({"uid": self.uid, "allowed": false, "status": status}),
            warnings,
        )
    }

    fn answer(&self, mut response: Value, warnings: &[String]) -> Value {
        if let (false, Some(members)) = (warnings.is_empty(), response.as_object_mut()) {
            let shown: Vec<String> = warnings
                .iter()
                .take(WARNINGS_MAX)
                .map(|warning| cut(warning, WARNING_CHARS_MAX))
                .collect();
            members.insert("warnings".to_owned(), json!(shown));
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }
}

/// Why a request is refused.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) code: u16,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) causes: Vec<Cause>,
}

/// One of several reasons.
#[derive(Debug)]
pub(crate) struct Cause {
    pub(crate) reason: String,
    pub(crate) field: String,
    pub(crate) message: String,
}

impl Refused {
    /// Nothing can be decided before everything was read once.
    pub(crate) fn not_ready() -> Self {
        Self {
            code: 503,
            reason: "ServiceUnavailable".to_owned(),
            message: "the operator has not read all policies yet; try again".to_owned(),
            causes: Vec::new(),
        }
    }
}

fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    short.push('…');
    short
}
