//! The printer leaves out brackets around some operands (`(a LIKE b) IS NULL` is fine, `(a AND b) IS NULL` is not).
//! Where one could matter it is printed as the call of a function with a name of its own, and the name is taken out of
//! the text again. The proof afterwards compares with the tree as it was.

use pg_raw_parse::make::{MemoryToken, Unique, owned};
use pg_raw_parse::nodes::{A_Expr_Kind, RawStmt};
use pg_raw_parse::transform::{self, Assignable, Transform};
use pg_raw_parse::{Node, NodeMut, deparse};

use crate::plan::CannotGovern;

/// The tree's text.
pub(super) fn print(statement: &RawStmt, client_text: &str) -> Result<String, CannotGovern> {
    let mut marker = "weir_brackets".to_owned();
    while client_text.contains(&marker) {
        marker.push('_');
    }
    let bracketed = owned(|mem| {
        let mut copy = mem.make_unique(statement.stmt());
        Brackets {
            mem,
            marker: &marker,
            pairs: 0,
            nested: 0,
        }
        .transform_node(Assignable::new(&mut copy));
        mem.make_raw_stmt(copy)
    });
    let printed = deparse(&*bracketed).map_err(|error| {
        CannotGovern::Impossible(format!("the governed statement cannot be printed: {error}"))
    })?;
    Ok(printed.as_str().replace(&format!("{marker}("), "("))
}

/// Each pair copies what is in it: deeper ones are left out, and the proof then says what that means.
const NESTED_MAX: usize = 100;

struct Brackets<'a, 'mem> {
    mem: MemoryToken<'mem>,
    marker: &'a str,
    /// Pairs made so far, and how many stand around this place.
    pairs: usize,
    nested: usize,
}

impl<'mem> Brackets<'_, 'mem> {
    fn bracket(&mut self, node: Node<'_>) -> Unique<'mem, Node<'mem>> {
        self.pairs += 1;
        let mut call = self.mem.make_node::<pg_raw_parse::nodes::FuncCall>();
        call.as_mut().set_funcname(
            self.mem
                .make_list(&[self.mem.make_string(Some(self.marker)).uncast()]),
        );
        call.as_mut()
            .set_args(self.mem.make_list(&[self.mem.make_unique(node)]));
        call.uncast()
    }
}

/// Operands that an operator of lower or equal strength could tear apart.
fn is_loose(node: Node<'_>) -> bool {
    match node {
        Node::BoolExpr(_) | Node::NullTest(_) | Node::BooleanTest(_) => true,
        Node::A_Expr(expr) => expr.kind != A_Expr_Kind::AEXPR_NULLIF,
        Node::SubLink(link) => !matches!(link.testexpr(), Node::None),
        _ => false,
    }
}

impl<'mem> Transform<'mem> for Brackets<'_, 'mem> {
    fn transform_node<'mutref>(&mut self, mut node: Assignable<'mem, 'mutref>) {
        let before = self.pairs;
        match &mut *node {
            _ if self.nested >= NESTED_MAX => {}
            NodeMut::A_Expr(expr) => match expr.kind {
                // The printer brackets these itself.
                A_Expr_Kind::AEXPR_OP | A_Expr_Kind::AEXPR_DISTINCT | A_Expr_Kind::AEXPR_NULLIF => {}
                _ => {
                    if is_loose(expr.lexpr()) {
                        let bracketed = self.bracket(expr.lexpr());
                        expr.set_lexpr(bracketed);
                    }
                    match expr.rexpr() {
                        Node::NodeList(list)
                            if expr.kind != A_Expr_Kind::AEXPR_IN && list.iter().any(is_loose) =>
                        {
                            let bounds: Vec<Unique<'mem, Node<'mem>>> = list
                                .iter()
                                .map(|bound| {
                                    if is_loose(bound) {
                                        self.bracket(bound)
                                    } else {
                                        self.mem.make_unique(bound)
                                    }
                                })
                                .collect();
                            expr.set_rexpr(self.mem.make_list(&bounds).uncast());
                        }
                        right if is_loose(right) => {
                            let bracketed = self.bracket(right);
                            expr.set_rexpr(bracketed);
                        }
                        _ => {}
                    }
                }
            },
            NodeMut::NullTest(test) if is_loose(test.arg()) => {
                let bracketed = self.bracket(test.arg());
                test.set_arg(bracketed);
            }
            NodeMut::BooleanTest(test) if is_loose(test.arg()) => {
                let bracketed = self.bracket(test.arg());
                test.set_arg(bracketed);
            }
            NodeMut::SubLink(link) if is_loose(link.testexpr()) => {
                let bracketed = self.bracket(link.testexpr());
                link.set_testexpr(bracketed);
            }
            // XMLTABLE takes nothing but the tightest expressions without brackets.
            NodeMut::RangeTableFunc(table) => {
                if is_loose(table.docexpr()) || matches!(table.docexpr(), Node::TypeCast(_)) {
                    let bracketed = self.bracket(table.docexpr());
                    table.set_docexpr(bracketed);
                }
                if is_loose(table.rowexpr()) || matches!(table.rowexpr(), Node::TypeCast(_)) {
                    let bracketed = self.bracket(table.rowexpr());
                    table.set_rowexpr(bracketed);
                }
            }
            NodeMut::CollateClause(collate) if is_loose(collate.arg()) => {
                let bracketed = self.bracket(collate.arg());
                collate.set_arg(bracketed);
            }
            _ => {}
        }
        let bracketed = self.pairs > before;
        self.nested += usize::from(bracketed);
        transform::transform_node(node.into_inner(), self);
        self.nested -= usize::from(bracketed);
    }
}
