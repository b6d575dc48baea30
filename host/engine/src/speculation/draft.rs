//! A tree of proposed tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftNode {
    pub token: u32,
    pub parent: Option<u16>,
    pub drafter: u8,
}
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Draft {
    nodes: Vec<DraftNode>,
}
impl Draft {
    pub fn nodes(&self) -> &[DraftNode] {
        &self.nodes
    }
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
    pub fn clear(&mut self) {
        self.nodes.clear();
    }
    pub fn truncate(&mut self, len: usize) {
        self.nodes.truncate(len);
    }
    pub fn push(&mut self, token: u32, parent: Option<u16>, drafter: u8) -> Option<u16> {
        let same = |n: &DraftNode| n.token == token && n.parent == parent;
        if let Some(i) = self.nodes.iter().position(same) {
            return Some(i as u16);
        }
        self.nodes.push(DraftNode {
            token,
            parent,
            drafter,
        });
        Some(self.nodes.len() as u16 - 1)
    }
    /// The node that proposes `token` after `parent`.
    pub fn child(&self, parent: Option<u16>, token: u32) -> Option<u16> {
        let is = |n: &DraftNode| n.parent == parent && n.token == token;
        self.nodes.iter().position(is).map(|i| i as u16)
    }
}
