//! Edits of a pod that are written down as a JSON patch while they are made.

use serde_json::{Map, Value, json};

/// A pod and how it came to be what it is.
#[derive(Debug)]
pub(crate) struct Editor {
    pod: Value,
    operations: Vec<Value>,
}

impl Editor {
    pub(crate) fn new(pod: &Value) -> Self {
        Self {
            pod: pod.clone(),
            operations: Vec::new(),
        }
    }

    /// The pod as edited so far.
    pub(crate) fn pod(&self) -> &Value {
        &self.pod
    }

    pub(crate) fn into_operations(self) -> Vec<Value> {
        self.operations
    }

    /// The object at `path` (a JSON pointer), made with its parents where it is not there.
    fn object(&mut self, path: &str) -> Option<&mut Map<String, Value>> {
        if self.pod.pointer(path).is_none_or(Value::is_null) {
            let (parent, key) = path.rsplit_once('/')?;
            self.object(parent)?.insert(unescaped(key), json!({}));
            self.operations
                .push(json!({"op": "add", "path": path, "value": {}}));
        }
        self.pod.pointer_mut(path)?.as_object_mut()
    }

    /// Sets a member of the object at `path`, which is made where it is not there.
    pub(crate) fn set(&mut self, path: &str, key: &str, value: Value) {
        let Some(object) = self.object(path) else {
            return;
        };
        if object.get(key) == Some(&value) {
            return;
        }
        let before = object.insert(key.to_owned(), value.clone());
        let operation = if before.is_some() { "replace" } else { "add" };
        self.operations
            .push(json!({"op": operation, "path": format!("{path}/{}", escaped(key)), "value": value}));
    }

    /// Makes the list `key` of the object at `path` equal `list`, item by item, so that what stays is not in the patch.
    pub(crate) fn set_list(&mut self, path: &str, key: &str, list: Vec<Value>) {
        let at = format!("{path}/{key}");
        let Some(current) = self.pod.pointer(&at).and_then(Value::as_array) else {
            if !list.is_empty() {
                self.set(path, key, Value::Array(list));
            }
            return;
        };
        let mut current = current.clone();
        for index in (0..current.len()).rev() {
            if current.get(index).is_some_and(|item| !list.contains(item)) {
                self.drop_item(&at, &mut current, index);
            }
        }
        for (index, wanted) in list.iter().enumerate() {
            if current.get(index) == Some(wanted) {
                continue;
            }
            let later = current.iter().skip(index).position(|item| item == wanted);
            if let Some(later) = later {
                self.drop_item(&at, &mut current, index + later);
            }
            current.insert(index, wanted.clone());
            self.operations
                .push(json!({"op": "add", "path": format!("{at}/{index}"), "value": wanted}));
        }
        for index in (list.len()..current.len()).rev() {
            self.drop_item(&at, &mut current, index);
        }
        if let Some(place) = self.pod.pointer_mut(&at) {
            *place = Value::Array(current);
        }
    }

    /// Removes one item, after a test that it is the one that was meant: an item's place is all a patch knows.
    fn drop_item(&mut self, at: &str, current: &mut Vec<Value>, index: usize) {
        let item = current.remove(index);
        if let Some(name) = item.get("name") {
            self.operations
                .push(json!({"op": "test", "path": format!("{at}/{index}/name"), "value": name}));
        }
        self.operations
            .push(json!({"op": "remove", "path": format!("{at}/{index}")}));
    }
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

fn unescaped(key: &str) -> String {
    key.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operations_lead_to_the_edited_pod() {
        let before = json!({"spec": {"list": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}});
        for wanted in [
            json!([]),
            json!([{"name": "c"}, {"name": "a"}]),
            json!([{"name": "x"}, {"name": "a"}, {"name": "b"}, {"name": "c"}]),
            json!([{"name": "c"}, {"name": "b"}, {"name": "a"}, {"name": "a"}]),
        ] {
            let mut editor = Editor::new(&before);
            editor.set_list("/spec", "list", wanted.as_array().expect("a list").clone());
            editor.set("/metadata/annotations", "weir.dev/x~y", json!("z"));
            editor.set("/metadata", "labels", json!({"a": "b"}));
            let edited = editor.pod().clone();
            assert_eq!(edited.pointer("/spec/list"), Some(&wanted));
            let patch: json_patch::Patch =
                serde_json::from_value(Value::Array(editor.into_operations())).expect("a patch");
            let mut patched = before.clone();
            json_patch::patch(&mut patched, &patch).expect("the patch applies");
            assert_eq!(patched, edited);
        }
    }
}
