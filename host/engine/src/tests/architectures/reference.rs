//! The formulas of the papers in f64, one loop per sign: no cache, no batch, no quantisation, and
//! nothing shared with the engine. It is itself compared with candle, where candle is right.

use super::blueprint::{Blueprint, Family, Tensors, llama3_divisors};

/// A mistake to make, so that a comparison can show that it would see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    WrongPairs,
    NoScaling,
    NoBias,
    NoOutputBias,
    NoHeadNorms,
    WindowOneWider,
    NoWindow,
    NormLacksOne,
    Silu,
    NoEmbeddingScale,
    NoAttentionCap,
    NoFinalCap,
    ScaleOfTheHead,
    NoPostNorms,
    OneRotation,
    LocalEverywhere,
    Renormalised,
    NotRenormalised,
    NoSharedExpert,
    NoSharedGate,
    OneExpert,
}

pub struct Reference<'a> {
    pub blueprint: &'a Blueprint,
    pub tensors: &'a Tensors,
    pub mistake: Option<Mistake>,
}

type Rows = Vec<Vec<f64>>;

impl Reference<'_> {
    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn vector(&self, name: &str) -> Vec<f64> {
        self.tensors[name]
            .values
            .iter()
            .map(|v| f64::from(*v))
            .collect()
    }

    /// `x · wᵀ`.
    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        let weights = self.tensors[name].values.chunks_exact(x.len());
        weights
            .map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum())
            .collect()
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + self.blueprint.epsilon).sqrt();
        let more = match self.blueprint.gemma() && !self.makes(Mistake::NormLacksOne) {
            true => 1.0,
            false => 0.0,
        };
        let weights = self.vector(name);
        x.iter()
            .zip(weights)
            .map(|(x, w)| x * factor * (w + more))
            .collect()
    }

    /// Logits at every position.
    pub fn logits(&self, tokens: &[u32]) -> Rows {
        let b = self.blueprint;
        let embedding = &self.tensors["model.embed_tokens.weight"].values;
        let scale = match b.gemma() && !self.makes(Mistake::NoEmbeddingScale) {
            true => (b.hidden as f64).sqrt(),
            false => 1.0,
        };
        let mut rows: Rows = tokens
            .iter()
            .map(|token| {
                let row = &embedding[*token as usize * b.hidden..][..b.hidden];
                row.iter().map(|x| f64::from(*x) * scale).collect()
            })
            .collect();
        for layer in 0..b.layers {
            self.layer(layer, &mut rows);
        }
        let head = match b.tied {
            true => "model.embed_tokens.weight",
            false => "lm_head.weight",
        };
        let capped = b.family == Family::Gemma2 && !self.makes(Mistake::NoFinalCap);
        rows.iter()
            .map(|row| {
                let logits = self.linear(&self.norm(row, "model.norm.weight"), head);
                match capped {
                    true => logits.iter().map(|x| cap(*x, b.final_cap)).collect(),
                    false => logits,
                }
            })
            .collect()
    }

    fn layer(&self, layer: usize, rows: &mut Rows) {
        let b = self.blueprint;
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let post = |x: Vec<f64>, part: &str| match b.gemma() && !self.makes(Mistake::NoPostNorms) {
            true => self.norm(&x, &name(part)),
            false => x,
        };
        let normed: Rows = rows
            .iter()
            .map(|row| self.norm(row, &name("input_layernorm.weight")))
            .collect();
        for (row, attended) in rows.iter_mut().zip(self.attention(layer, &normed)) {
            let mut out = self.linear(&attended, &name("self_attn.o_proj.weight"));
            if b.output_bias && !self.makes(Mistake::NoOutputBias) {
                add(&mut out, &self.vector(&name("self_attn.o_proj.bias")), 1.0);
            }
            add(row, &post(out, "post_attention_layernorm.weight"), 1.0);
        }
        let before = match b.gemma() {
            true => "pre_feedforward_layernorm.weight",
            false => "post_attention_layernorm.weight",
        };
        for row in rows {
            let normed = self.norm(row, &name(before));
            let out = match b.experts {
                0 => {
                    let parts = ["gate_proj", "up_proj", "down_proj"];
                    self.gated(&normed, &name("mlp."), parts)
                }
                _ => self.mixture(layer, &normed),
            };
            add(row, &post(out, "post_feedforward_layernorm.weight"), 1.0);
        }
    }

    fn is_local(&self, layer: usize) -> bool {
        match self.blueprint.family {
            Family::Gemma2 => layer.is_multiple_of(2) || self.makes(Mistake::LocalEverywhere),
            Family::Gemma3 => {
                !(layer + 1).is_multiple_of(self.blueprint.pattern)
                    || self.makes(Mistake::LocalEverywhere)
            }
            _ => true,
        }
    }

    fn attention(&self, layer: usize, rows: &[Vec<f64>]) -> Rows {
        let b = self.blueprint;
        let d = b.head_dim;
        let heads = |part: &str| -> Rows {
            rows.iter()
                .enumerate()
                .map(|(position, row)| self.heads(layer, part, row, position))
                .collect()
        };
        let (q, k, v) = (heads("q"), heads("k"), heads("v"));
        let window = b
            .window
            .filter(|_| self.is_local(layer))
            .map(|w| w + usize::from(self.makes(Mistake::WindowOneWider)));
        let window = window.filter(|_| !self.makes(Mistake::NoWindow));
        let scalar = match b.gemma() && !self.makes(Mistake::ScaleOfTheHead) {
            true => b.query_scalar,
            false => d as f64,
        };
        let capped = b.family == Family::Gemma2 && !self.makes(Mistake::NoAttentionCap);
        let one = |position: usize, head: usize| -> Vec<f64> {
            let kv_head = head / (b.heads / b.kv_heads);
            let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
            let q = &q[position][head * d..][..d];
            let scores: Vec<f64> = (first..=position)
                .map(|j| {
                    let score = dot(q, &k[j][kv_head * d..][..d]) / scalar.sqrt();
                    let score = score * self.yarn_factor().powi(2);
                    if capped {
                        cap(score, b.attention_cap)
                    } else {
                        score
                    }
                })
                .collect();
            let mut out = vec![0.0; d];
            for (j, p) in softmax(&scores).into_iter().enumerate() {
                add(&mut out, &v[first + j][kv_head * d..][..d], p);
            }
            out
        };
        (0..rows.len())
            .map(|position| (0..b.heads).flat_map(|head| one(position, head)).collect())
            .collect()
    }

    /// One of queries, keys and values, with bias, norm and rotation.
    fn heads(&self, layer: usize, part: &str, row: &[f64], position: usize) -> Vec<f64> {
        let b = self.blueprint;
        let name = |rest: &str| format!("model.layers.{layer}.self_attn.{part}_{rest}");
        let mut x = self.linear(row, &name("proj.weight"));
        if b.biases() && !self.makes(Mistake::NoBias) {
            add(&mut x, &self.vector(&name("proj.bias")), 1.0);
        }
        if part == "v" {
            return x;
        }
        let normed = b.head_norms() && !self.makes(Mistake::NoHeadNorms);
        let angles = self.angles(layer, position);
        x.chunks_exact(b.head_dim)
            .flat_map(|head| {
                let head = match normed {
                    true => self.norm(head, &name("norm.weight")),
                    false => head.to_vec(),
                };
                self.rotate(&head, &angles)
            })
            .collect()
    }

    fn rotate(&self, head: &[f64], angles: &[f64]) -> Vec<f64> {
        let mut out = head.to_vec();
        for (i, angle) in angles.iter().enumerate() {
            let (a, b) = match self.makes(Mistake::WrongPairs) {
                true => (2 * i, 2 * i + 1),
                false => (i, i + angles.len()),
            };
            out[a] = head[a] * angle.cos() - head[b] * angle.sin();
            out[b] = head[a] * angle.sin() + head[b] * angle.cos();
        }
        out
    }

    fn angles(&self, layer: usize, position: usize) -> Vec<f64> {
        let b = self.blueprint;
        let local =
            b.family == Family::Gemma3 && self.is_local(layer) && !self.makes(Mistake::OneRotation);
        let base = if local { b.local_base } else { b.rope_base };
        let scaling = b
            .scaling
            .as_ref()
            .filter(|_| !local && !self.makes(Mistake::NoScaling));
        let kind = scaling.and_then(|s| s.get("rope_type").or(s.get("type"))?.as_str());
        let number = |key: &str| scaling.map_or(f64::NAN, |s| s[key].as_f64().expect("a number"));
        let llama3 = match kind {
            Some("llama3") => llama3_divisors(b, scaling.expect("it has a kind")),
            _ => Vec::new(),
        };
        (0..b.head_dim / 2)
            .map(|i| {
                let frequency = base.powf(-2.0 * i as f64 / b.head_dim as f64);
                let frequency = match kind {
                    None => frequency,
                    Some("linear") => frequency / number("factor"),
                    Some("llama3") => frequency / f64::from(llama3[i]),
                    Some("yarn") => {
                        let original = number("original_max_position_embeddings");
                        yarn_frequency(i, b.head_dim, base, number("factor"), original)
                    }
                    Some(other) => unreachable!("no blueprint has {other}"),
                };
                position as f64 * frequency
            })
            .collect()
    }

    fn yarn_factor(&self) -> f64 {
        let scaling = self.blueprint.scaling.as_ref();
        match scaling.filter(|s| s.get("type").is_some_and(|t| t == "yarn")) {
            Some(scaling) if !self.makes(Mistake::NoScaling) => {
                0.1 * scaling["factor"].as_f64().expect("a number").ln() + 1.0
            }
            _ => 1.0,
        }
    }

    fn gated(&self, x: &[f64], prefix: &str, [gate, up, down]: [&str; 3]) -> Vec<f64> {
        let tanh = self.blueprint.gemma() && !self.makes(Mistake::Silu);
        let gate = self.linear(x, &format!("{prefix}{gate}.weight"));
        let up = self.linear(x, &format!("{prefix}{up}.weight"));
        let product: Vec<f64> = gate
            .iter()
            .zip(up)
            .map(|(g, u)| u * if tanh { gelu_tanh(*g) } else { g * sigmoid(*g) })
            .collect();
        self.linear(&product, &format!("{prefix}{down}.weight"))
    }

    fn mixture(&self, layer: usize, x: &[f64]) -> Vec<f64> {
        let b = self.blueprint;
        let (home, parts) = match b.family {
            Family::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
            _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
        };
        let prefix = format!("model.layers.{layer}.{home}.");
        let probabilities = softmax(&self.linear(x, &format!("{prefix}gate.weight")));
        let mut order: Vec<usize> = (0..b.experts).collect();
        order.sort_by(|i, j| probabilities[*j].total_cmp(&probabilities[*i]));
        order.truncate(if self.makes(Mistake::OneExpert) {
            1
        } else {
            b.experts_used
        });
        let sum: f64 = order.iter().map(|i| probabilities[*i]).sum();
        let renormalise = (b.renormalise || self.makes(Mistake::Renormalised))
            && !self.makes(Mistake::NotRenormalised);
        let mut out = vec![0.0; b.hidden];
        for expert in order {
            let weight = probabilities[expert] / if renormalise { sum } else { 1.0 };
            let own = self.gated(x, &format!("{prefix}experts.{expert}."), parts);
            add(&mut out, &own, weight);
        }
        if b.shared_width > 0 && !self.makes(Mistake::NoSharedExpert) {
            let gate = self.linear(x, &format!("{prefix}shared_expert_gate.weight"))[0];
            let weight = if self.makes(Mistake::NoSharedGate) {
                1.0
            } else {
                sigmoid(gate)
            };
            let own = self.gated(x, &format!("{prefix}shared_expert."), parts);
            add(&mut out, &own, weight);
        }
        out
    }
}

/// Peng et al. 2023, §3.2 and appendix A.2, with the bounds 32 and 1.
fn yarn_frequency(pair: usize, dim: usize, base: f64, factor: f64, original: f64) -> f64 {
    let frequency = base.powf(-2.0 * pair as f64 / dim as f64);
    let pair_of = |turns: f64| {
        dim as f64 * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln())
    };
    let low = pair_of(32.0).floor().max(0.0);
    let high = pair_of(1.0).ceil().min(dim as f64 - 1.0);
    let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
    frequency / factor * ramp + frequency * (1.0 - ramp)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], from: &[f64], weight: f64) {
    to.iter_mut()
        .zip(from)
        .for_each(|(to, from)| *to += weight * from);
}

fn cap(x: f64, cap: f64) -> f64 {
    cap * (x / cap).tanh()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.iter().map(|s| (s - greatest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}
