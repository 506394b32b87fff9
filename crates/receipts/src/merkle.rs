//! The Merkle tree of RFC 6962, section 2.1: hashing, proofs of inclusion and consistency, and a proof that a whole
//! range of leaves is in the tree. Proofs are made from a [`HashSource`], so the same code serves a group of a few
//! events in memory and a log of millions in tiles.

use crate::ids::Digest;

/// Gives the hashes of complete subtrees.
pub trait HashSource {
    /// Why a hash cannot be given.
    type Error;
    /// The hash over the leaves `[index << level, (index + 1) << level)`.
    ///
    /// # Errors
    /// Where the source does not have it.
    fn node(&self, level: u32, index: u64) -> Result<Digest, Self::Error>;
}

/// A slice of leaf hashes has no such node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tree has no node {index} on level {level}")]
pub struct NodeMissing {
    /// Height over the leaves.
    pub level: u32,
    /// Position on that level.
    pub index: u64,
}

impl HashSource for [Digest] {
    type Error = NodeMissing;
    fn node(&self, level: u32, index: u64) -> Result<Digest, NodeMissing> {
        let missing = NodeMissing { level, index };
        if level == 0 {
            let index = usize::try_from(index).map_err(|_| missing)?;
            return self.get(index).copied().ok_or(missing);
        }
        let left = index.checked_mul(2).ok_or(missing)?;
        Ok(node_hash(
            &self.node(level - 1, left)?,
            &self.node(level - 1, left + 1)?,
        ))
    }
}

/// Hash of a leaf: `SHA-256(0x00 ‖ data)`.
pub fn leaf_hash(data: &[u8]) -> Digest {
    Digest::of(&[&[0], data])
}

/// Hash of an inner node: `SHA-256(0x01 ‖ left ‖ right)`.
pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
    Digest::of(&[&[1], &left.0, &right.0])
}

/// Root of the tree without leaves.
pub fn empty_root() -> Digest {
    Digest::of(&[])
}

/// Root over leaf hashes.
pub fn root_of(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => empty_root(),
        [only] => *only,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
            node_hash(&root_of(left), &root_of(right))
        }
    }
}

/// `MTH(D[from:to])`, from complete subtrees. `from` must be a place where the tree of that size splits, which holds for
/// all calls that start at 0 and follow the splits.
///
/// # Errors
/// Where the source lacks a node.
pub fn hash_range<S: HashSource + ?Sized>(source: &S, from: u64, to: u64) -> Result<Digest, S::Error> {
    let size = to.saturating_sub(from);
    if size == 0 {
        return Ok(empty_root());
    }
    if size.is_power_of_two() && from.is_multiple_of(size) {
        return source.node(size.trailing_zeros(), from >> size.trailing_zeros());
    }
    let middle = from + split(size);
    Ok(node_hash(
        &hash_range(source, from, middle)?,
        &hash_range(source, middle, to)?,
    ))
}

/// The audit path of leaf `index` in the tree of `size` leaves, from the leaf upwards.
///
/// # Errors
/// Where the source lacks a node.
pub fn inclusion_proof<S: HashSource + ?Sized>(
    source: &S,
    index: u64,
    size: u64,
) -> Result<Vec<Digest>, S::Error> {
    let (mut from, mut to, mut path) = (0, size, Vec::new());
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            path.push(hash_range(source, middle, to)?);
            to = middle;
        } else {
            path.push(hash_range(source, from, middle)?);
            from = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// Whether the leaf with that hash is leaf `index` of the tree.
pub fn verify_inclusion(leaf: &Digest, index: u64, size: u64, path: &[Digest], root: &Digest) -> bool {
    if index >= size {
        return false;
    }
    // RFC 9162, section 2.1.3.2.
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if node % 2 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node.is_multiple_of(2) && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// Proof that the tree of `new` leaves starts with the tree of `old` leaves (`SUBPROOF` of RFC 6962).
///
/// # Errors
/// Where the source lacks a node.
pub fn consistency_proof<S: HashSource + ?Sized>(
    source: &S,
    old: u64,
    new: u64,
) -> Result<Vec<Digest>, S::Error> {
    let mut proof = Vec::new();
    if old == 0 || old >= new {
        return Ok(proof);
    }
    let (mut from, mut to, mut whole) = (0, new, true);
    loop {
        if old == to {
            if !whole {
                proof.push(hash_range(source, from, to)?);
            }
            break;
        }
        let middle = from + split(to - from);
        if old <= middle {
            proof.push(hash_range(source, middle, to)?);
            to = middle;
        } else {
            proof.push(hash_range(source, from, middle)?);
            from = middle;
            whole = false;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Whether the tree (`new`, `new_root`) starts with the tree (`old`, `old_root`).
pub fn verify_consistency(
    old: u64,
    old_root: &Digest,
    new: u64,
    new_root: &Digest,
    proof: &[Digest],
) -> bool {
    if old > new {
        return false;
    }
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    if old == 0 {
        return proof.is_empty() && *old_root == empty_root();
    }
    // RFC 9162, section 2.1.4.2.
    let (mut node, mut last) = (old - 1, new - 1);
    while node % 2 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let mut rest = proof.iter();
    let start = if old.is_power_of_two() {
        *old_root
    } else {
        match rest.next() {
            Some(first) => *first,
            None => return false,
        }
    };
    let (mut old_hash, mut new_hash) = (start, start);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if node % 2 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while node.is_multiple_of(2) && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && old_hash == *old_root && new_hash == *new_root
}

/// The hashes that, together with the leaves `[from, to)`, give the root of the tree of `size` leaves: left to right,
/// the largest subtrees that hold none of them.
///
/// # Errors
/// Where the source lacks a node.
pub fn range_proof<S: HashSource + ?Sized>(
    source: &S,
    from: u64,
    to: u64,
    size: u64,
) -> Result<Vec<Digest>, S::Error> {
    fn walk<S: HashSource + ?Sized>(
        source: &S,
        range: (u64, u64),
        node: (u64, u64),
        proof: &mut Vec<Digest>,
    ) -> Result<(), S::Error> {
        if node.1 <= range.0 || node.0 >= range.1 {
            proof.push(hash_range(source, node.0, node.1)?);
        } else if node.1 - node.0 > 1 {
            let middle = node.0 + split(node.1 - node.0);
            walk(source, range, (node.0, middle), proof)?;
            walk(source, range, (middle, node.1), proof)?;
        }
        Ok(())
    }
    let mut proof = Vec::new();
    if from < to && to <= size {
        walk(source, (from, to), (0, size), &mut proof)?;
    }
    Ok(proof)
}

/// The root that those leaves from `from` on and that proof lead to; `None` where the proof does not fit.
pub fn root_of_range(leaves: &[Digest], from: u64, size: u64, proof: &[Digest]) -> Option<Digest> {
    fn walk(
        range: (u64, u64),
        node: (u64, u64),
        leaves: &mut std::slice::Iter<'_, Digest>,
        proof: &mut std::slice::Iter<'_, Digest>,
    ) -> Option<Digest> {
        if node.1 <= range.0 || node.0 >= range.1 {
            return proof.next().copied();
        }
        if node.1 - node.0 == 1 {
            return leaves.next().copied();
        }
        let middle = node.0 + split(node.1 - node.0);
        let left = walk(range, (node.0, middle), leaves, proof)?;
        let right = walk(range, (middle, node.1), leaves, proof)?;
        Some(node_hash(&left, &right))
    }
    let to = from.checked_add(leaves.len() as u64)?;
    if from >= to || to > size {
        return None;
    }
    let (mut leaves, mut proof) = (leaves.iter(), proof.iter());
    let root = walk((from, to), (0, size), &mut leaves, &mut proof)?;
    (leaves.next().is_none() && proof.next().is_none()).then_some(root)
}

/// Computes the root of a tree whose leaves come one after the other, holding one hash a level.
#[derive(Debug, Clone, Default)]
pub struct Frontier {
    /// (level, hash) of complete subtrees, largest first.
    stack: Vec<(u32, Digest)>,
    size: u64,
}

impl Frontier {
    /// Appends a leaf.
    pub fn push(&mut self, leaf: Digest) {
        let (mut level, mut hash) = (0, leaf);
        while let Some((top, left)) = self.stack.pop() {
            if top == level {
                hash = node_hash(&left, &hash);
                level += 1;
            } else {
                self.stack.push((top, left));
                break;
            }
        }
        self.stack.push((level, hash));
        self.size += 1;
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Root over all leaves so far.
    pub fn root(&self) -> Digest {
        let mut parts = self.stack.iter().rev();
        let Some((_, mut hash)) = parts.next().copied() else {
            return empty_root();
        };
        for (_, left) in parts {
            hash = node_hash(left, &hash);
        }
        hash
    }
}

/// The largest power of two below `size` (which is 2 or more).
fn split(size: u64) -> u64 {
    debug_assert!(size > 1);
    1 << (size.saturating_sub(1)).checked_ilog2().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: u64) -> Vec<Digest> {
        (0..count).map(|i| leaf_hash(&i.to_be_bytes())).collect()
    }

    /// The eight leaves and roots that certificate transparency's own tests use.
    #[test]
    fn known_roots() {
        let data: [&str; 8] = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let hashes: Vec<Digest> = data
            .iter()
            .map(|text| leaf_hash(&hex::decode(text).unwrap()))
            .collect();
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        for (size, root) in roots.iter().enumerate() {
            assert_eq!(root_of(&hashes[..=size]).to_string(), *root);
            assert_eq!(
                hash_range(hashes.as_slice(), 0, size as u64 + 1)
                    .unwrap()
                    .to_string(),
                *root
            );
        }
        assert_eq!(
            empty_root().to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn every_proof_up_to_40_leaves_holds_and_no_altered_one_does() {
        let all = leaves(40);
        for size in 1..=40_u64 {
            let tree = &all[..size as usize];
            let root = root_of(tree);
            let mut frontier = Frontier::default();
            tree.iter().for_each(|leaf| frontier.push(*leaf));
            assert_eq!((frontier.size(), frontier.root()), (size, root));
            for index in 0..size {
                let path = inclusion_proof(tree, index, size).unwrap();
                let leaf = &tree[index as usize];
                assert!(
                    verify_inclusion(leaf, index, size, &path, &root),
                    "{index} of {size}"
                );
                assert!(
                    !verify_inclusion(
                        &all[39 - index as usize % 2],
                        (index + 1) % size.max(2),
                        size,
                        &path,
                        &root
                    ) || size == 1
                );
                for at in 0..path.len() {
                    let mut bad = path.clone();
                    bad[at].0[0] ^= 1;
                    assert!(!verify_inclusion(leaf, index, size, &bad, &root));
                }
                let mut long = path.clone();
                long.push(root);
                assert!(!verify_inclusion(leaf, index, size, &long, &root));
            }
            for old in 0..=size {
                let old_root = root_of(&all[..old as usize]);
                let proof = consistency_proof(tree, old, size).unwrap();
                assert!(
                    verify_consistency(old, &old_root, size, &root, &proof),
                    "{old} to {size}"
                );
                if old > 0 && old < size {
                    let mut other = old_root;
                    other.0[3] ^= 4;
                    assert!(!verify_consistency(old, &other, size, &root, &proof));
                }
            }
            for from in 0..size {
                for to in from + 1..=size {
                    let proof = range_proof(tree, from, to, size).unwrap();
                    let part = &tree[from as usize..to as usize];
                    assert_eq!(
                        root_of_range(part, from, size, &proof),
                        Some(root),
                        "{from}..{to} of {size}"
                    );
                    let mut bad = part.to_vec();
                    bad[0].0[31] ^= 128;
                    assert_ne!(root_of_range(&bad, from, size, &proof), Some(root));
                    assert_ne!(root_of_range(part, from + 1, size, &proof), Some(root));
                }
            }
        }
    }
}
