//! Label selectors, as the API server evaluates them.

use crd_types::LabelSelector;
use serde_json::Value;

/// Whether `selector` selects an object with these labels (`metadata.labels`, as JSON). An operator that does not exist
/// selects nothing: a policy with one is not accepted.
#[must_use]
pub fn selects(selector: &LabelSelector, labels: Option<&Value>) -> bool {
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| label(key) == Some(value.as_str()));
    equal
        && selector.match_expressions.iter().flatten().all(|expression| {
            let value = label(&expression.key);
            let among = || {
                value.is_some_and(|value| expression.values.iter().flatten().any(|allowed| allowed == value))
            };
            match expression.operator.as_str() {
                "In" => among(),
                // As in Kubernetes: an absent label is not in the list.
                "NotIn" => !among(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selected(selector: Value, labels: Value) -> bool {
        selects(
            &serde_json::from_value(selector).expect("a selector"),
            Some(&labels),
        )
    }

    #[test]
    fn selects_as_kubernetes_does() {
        assert!(selected(json!({}), json!({})));
        assert!(selects(&LabelSelector::default(), None));
        assert!(selected(
            json!({"matchLabels": {"app": "a"}}),
            json!({"app": "a", "x": "y"})
        ));
        assert!(!selected(
            json!({"matchLabels": {"app": "a"}}),
            json!({"app": "b"})
        ));
        assert!(!selected(json!({"matchLabels": {"app": "a"}}), json!({})));
        let expression = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]});
        assert!(selected(expression("In", &["a", "b"]), json!({"app": "b"})));
        assert!(!selected(expression("In", &["a", "b"]), json!({})));
        assert!(selected(expression("NotIn", &["a"]), json!({})));
        assert!(!selected(expression("NotIn", &["a"]), json!({"app": "a"})));
        assert!(selected(expression("Exists", &[]), json!({"app": ""})));
        assert!(!selected(expression("Exists", &[]), json!({})));
        assert!(selected(expression("DoesNotExist", &[]), json!({})));
        assert!(!selected(expression("DoesNotExist", &[]), json!({"app": "a"})));
        assert!(!selected(expression("Near", &["a"]), json!({"app": "a"})));
    }
}
