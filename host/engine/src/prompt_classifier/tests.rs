//! The classifier on weights that are made from a seed, against the published formula written out
//! in plain numbers; and what is refused.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::random::SplitMix;

type Tensors = HashMap<String, Tensor>;

const HIDDEN: usize = 16;

/// Task types in an order that is nobody's, and targets in one that is not the alphabet's.
const CONFIG: &str = r#"{
    "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 32, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02, "layer_norm_eps": 1e-7,
    "max_position_embeddings": 32, "max_relative_positions": -1, "norm_rel_ebd": "layer_norm",
    "pad_token_id": 0, "pos_att_type": "p2c|c2p", "position_biased_input": false,
    "position_buckets": 8, "relative_attention": true, "share_att_key": true,
    "type_vocab_size": 0, "vocab_size": 24,
    "target_sizes": {"task_type": 4, "creativity_scope": 3, "reasoning": 2,
        "contextual_knowledge": 2, "number_of_few_shots": 6, "domain_knowledge": 4,
        "no_label_reason": 1, "constraint_ct": 2},
    "task_type_map": {"0": "Rewrite", "1": "Code Generation", "2": "Unknown", "3": "Open QA"},
    "weights_map": {"creativity_scope": [2, 1, 0], "reasoning": [0, 1],
        "contextual_knowledge": [0, 1], "number_of_few_shots": [0, 1, 2, 3, 4, 5],
        "domain_knowledge": [3, 1, 2, 0], "no_label_reason": [0], "constraint_ct": [1, 0]},
    "divisor_map": {"creativity_scope": 2, "reasoning": 1, "contextual_knowledge": 1,
        "number_of_few_shots": 1, "domain_knowledge": 3, "no_label_reason": 1,
        "constraint_ct": 1}
}"#;

fn config() -> Value {
    serde_json::from_str(CONFIG).expect("it is JSON")
}

/// Every tensor of the model that `config` describes, the same in every run.
fn tensors(config: &Value) -> Tensors {
    let map = VarMap::new();
    let builder = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let written = config.as_object().expect("an object");
    let backbone = backbone_config(written).expect("good settings");
    DebertaV2Model::load(builder.pp("backbone"), &backbone).expect("made as asked");
    let heads = Heads::read(written).expect("good maps");
    linears(&builder, HIDDEN, &heads).expect("made as asked");
    let made = map.data().lock().expect("nobody panicked");
    let mut names: Vec<&String> = made.keys().collect();
    names.sort();
    let mut random = SplitMix::new(7);
    let mut tensors = Tensors::new();
    for name in names {
        let shape = made[name].shape().clone();
        let value = |_| random.below(2001) as f32 / 1000.0 - 1.0;
        let values: Vec<f32> = (0..shape.elem_count()).map(value).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).expect("as many as asked");
        tensors.insert(name.clone(), tensor);
    }
    tensors
}

/// Four control tokens and the words `w0` to `w19`.
fn tokenizer() -> Value {
    let control = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"].map(str::to_owned);
    let words = control.into_iter().chain((0..20).map(|i| format!("w{i}")));
    let vocabulary: Map<String, Value> = words.zip(0..).map(|(w, id)| (w, json!(id))).collect();
    let token = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let special = |name: &str, id: u32| json!({"id": name, "ids": [id], "tokens": [name]});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [token("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, token("[SEP]")],
            "pair": [],
            "special_tokens": {"[CLS]": special("[CLS]", 1), "[SEP]": special("[SEP]", 2)}},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    })
}

fn folder(config: &Value, tensors: &Tensors) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let put = |name: &str, value: &Value| {
        std::fs::write(folder.path().join(name), value.to_string()).expect("it is writable");
    };
    put("config.json", config);
    put("tokenizer.json", &tokenizer());
    candle_core::safetensors::save(tensors, folder.path().join("model.safetensors"))
        .expect("it is writable");
    folder
}

fn loaded(config: &Value, tensors: &Tensors) -> PromptClassifier {
    PromptClassifier::load(folder(config, tensors).path()).expect("a good folder")
}

fn scores(classifier: &PromptClassifier, text: &str) -> PromptScores {
    let mut found = classifier.classify(&[text]).expect("a good text");
    found.remove(0).result
}

fn assert_near(found: f64, expected: f64, what: &str) {
    let difference = (found - expected).abs();
    assert!(difference < 1e-5, "{what}: {found}, expected {expected}");
}

/// Heads that give these probabilities whatever the text is.
fn constant_heads(tensors: &mut Tensors, probabilities: &[&[f32]]) {
    for (i, head) in probabilities.iter().enumerate() {
        let logits: Vec<f32> = head.iter().map(|p| p.ln()).collect();
        let weight = Tensor::zeros((head.len(), HIDDEN), DType::F32, &Device::Cpu);
        let bias = Tensor::from_vec(logits, head.len(), &Device::Cpu);
        tensors.insert(format!("head_{i}.fc.weight"), weight.expect("zeros"));
        tensors.insert(format!("head_{i}.fc.bias"), bias.expect("as many as asked"));
    }
}

#[test]
fn known_probabilities_give_the_scores_of_the_formula() {
    let config = config();
    let mut tensors = tensors(&config);
    let mut probabilities: [&[f32]; 8] = [
        &[0.5, 0.3, 0.15, 0.05],
        &[0.6, 0.3, 0.1],
        &[0.2, 0.8],
        &[0.9, 0.1],
        &[0.97, 0.01, 0.005, 0.005, 0.005, 0.005],
        &[0.1, 0.2, 0.3, 0.4],
        &[1.0],
        &[0.25, 0.75],
    ];
    constant_heads(&mut tensors, &probabilities);
    let found = scores(&loaded(&config, &tensors), "w1 w2");
    assert_eq!(found.task_type_1().0, "Rewrite");
    assert_near(found.task_type_1().1, 0.5, "task_type_prob");
    assert_eq!(found.task_type_2(), Some("Code Generation"));
    assert_near(
        found.creativity_scope,
        (2.0 * 0.6 + 0.3) / 2.0,
        "creativity",
    );
    assert_near(found.reasoning, 0.8, "reasoning");
    assert_near(found.contextual_knowledge, 0.1, "contextual knowledge");
    let few_shots = 0.01 + 0.005 * (2.0 + 3.0 + 4.0 + 5.0);
    assert_near(found.number_of_few_shots, few_shots, "few shots");
    let domain = (3.0 * 0.1 + 0.2 + 2.0 * 0.3) / 3.0;
    assert_near(found.domain_knowledge, domain, "domain knowledge");
    assert_near(found.constraint_ct, 0.25, "constraints");
    let creativity_and_reasoning = 0.35 * 0.75 + 0.25 * 0.8;
    let knowledge = 0.15 * domain + 0.05 * 0.1;
    let complexity = creativity_and_reasoning + 0.15 * 0.25 + knowledge + 0.05 * few_shots;
    assert_near(found.prompt_complexity_score, complexity, "complexity");

    // A second task type and examples that are hardly there are not there.
    probabilities[0] = &[0.02, 0.05, 0.04, 0.89];
    probabilities[4] = &[0.985, 0.01, 0.002, 0.001, 0.001, 0.001];
    constant_heads(&mut tensors, &probabilities);
    let found = scores(&loaded(&config, &tensors), "w1 w2");
    assert_eq!(found.task_type_1().0, "Open QA");
    assert_eq!(found.task_type_2(), None);
    assert_eq!(found.number_of_few_shots, 0.0);
    let without = complexity - 0.05 * few_shots;
    assert_near(found.prompt_complexity_score, without, "no examples");
}

/// The vector that the documentation describes, from the hidden states of the backbone alone.
fn by_hand(config: &Value, tensors: &Tensors, ids: &[u32]) -> Vec<f64> {
    let builder = VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
    let settings = backbone_config(config.as_object().expect("an object")).expect("good");
    let backbone = DebertaV2Model::load(builder.pp("backbone"), &settings).expect("all are there");
    let ids = Tensor::new(ids, &Device::Cpu).expect("ids");
    let ids = ids.unsqueeze(0).expect("one row");
    let hidden = backbone.forward(&ids, None, None).expect("a good row");
    let hidden: Vec<Vec<f32>> = hidden
        .squeeze(0)
        .and_then(|h| h.to_vec2())
        .expect("one row");
    let sum = |at: usize| hidden.iter().map(|h| f64::from(h[at])).sum::<f64>();
    let mean: Vec<f64> = (0..HIDDEN)
        .map(|at| sum(at) / hidden.len() as f64)
        .collect();
    let probabilities = |head: usize| {
        let weight: Vec<Vec<f32>> = tensors[&format!("head_{head}.fc.weight")]
            .to_vec2()
            .expect("a matrix");
        let bias: Vec<f32> = tensors[&format!("head_{head}.fc.bias")]
            .to_vec1()
            .expect("a vector");
        let rows = weight.iter().zip(&bias);
        let powers: Vec<f64> = rows
            .map(|(row, bias)| {
                let products = row.iter().zip(&mean).map(|(w, x)| f64::from(*w) * x);
                (products.sum::<f64>() + f64::from(*bias)).exp()
            })
            .collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|p| p / sum).collect::<Vec<f64>>()
    };
    let task = probabilities(0);
    let c = probabilities(1);
    let (creativity, reasoning) = ((2.0 * c[0] + c[1]) / 2.0, probabilities(2)[1]);
    let contextual = probabilities(3)[1];
    let shots = probabilities(4);
    let shots: f64 = shots
        .iter()
        .zip(0_u32..)
        .map(|(p, n)| p * f64::from(n))
        .sum();
    let shots = if shots < 0.05 { 0.0 } else { shots };
    let d = probabilities(5);
    let domain = (3.0 * d[0] + d[1] + 2.0 * d[2]) / 3.0;
    let constraint = probabilities(7)[0];
    let complexity = 0.35 * creativity
        + 0.25 * reasoning
        + 0.15 * constraint
        + 0.15 * domain
        + 0.05 * contextual
        + 0.05 * shots;
    let mut vector = vec![
        complexity, creativity, reasoning, contextual, shots, domain, constraint,
    ];
    vector.push(task.iter().copied().fold(0.0, f64::max));
    // Between Open QA, Code Generation, Rewrite and Other lie some that this model does not know.
    vector.extend([task[3], 0.0, 0.0, 0.0, task[1], 0.0, 0.0, task[0]]);
    vector.extend([0.0, 0.0, task[2]]);
    vector
}

#[test]
fn made_up_weights_give_what_the_hidden_states_give_by_hand() {
    let config = config();
    let tensors = tensors(&config);
    let classifier = loaded(&config, &tensors);
    let long = (0..20).map(|i| format!("w{i} ")).collect::<String>();
    for (text, words) in [
        ("w0 w5 w7", vec![4, 9, 11]),
        ("w19", vec![23]),
        (long.as_str(), (4..24).collect()),
    ] {
        let ids = [vec![1], words, vec![2]].concat();
        let expected = by_hand(&config, &tensors, &ids);
        let found = scores(&classifier, text).vector();
        assert_eq!(found.len(), PROMPT_VECTOR.len());
        assert_eq!(expected.len(), PROMPT_VECTOR.len());
        for ((name, found), expected) in PROMPT_VECTOR.iter().zip(&found).zip(&expected) {
            let difference = (f64::from(*found) - expected).abs();
            let both = format!("{name} of {text:?}: {found}, by hand {expected}");
            assert!(difference < 1e-4, "{both}");
        }
    }
}

#[test]
fn padding_changes_nothing_and_other_words_do() {
    let config = config();
    let classifier = loaded(&config, &tensors(&config));
    let texts = ["w0 w5 w7 w9 w11 w13 w2 w3 w4", "w1", "w8 w8 w8"];
    let together = classifier.classify(&texts).expect("good texts");
    let vectors: Vec<Vec<f32>> = together.iter().map(|c| c.result.vector()).collect();
    let distance = |a: &[f32], b: &[f32]| {
        let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        differences.fold(0.0, f32::max)
    };
    for (i, text) in texts.iter().enumerate() {
        let alone = scores(&classifier, text).vector();
        let difference = distance(&alone, &vectors[i]);
        assert!(difference < 1e-4, "{text:?} differs by {difference}");
        let other = distance(&alone, &vectors[(i + 1) % texts.len()]);
        assert!(other > 1e-2, "{text:?} is like another: {other}");
        let tokens = classifier.count_tokens(text).expect("a good text");
        assert_eq!(
            (together[i].num_tokens, together[i].truncated),
            (tokens, false)
        );
    }
}

#[test]
fn a_text_that_is_too_long_says_so() {
    let config = config();
    let classifier = loaded(&config, &tensors(&config));
    let long = "w1 ".repeat(100);
    assert_eq!(classifier.count_tokens(&long).expect("a good text"), 102);
    let found = classifier.classify(&[&long]).expect("a good text");
    let tokens = (found[0].num_tokens, classifier.max_tokens());
    assert_eq!((tokens, found[0].truncated), ((32, 32), true));
    assert!(classifier.classify(&[]).expect("nothing to do").is_empty());
}

/// That a folder with this change is refused with these words.
fn refused(change: impl FnOnce(&mut Value, &mut Tensors), words: &[&str]) {
    let mut config = config();
    let mut tensors = tensors(&config);
    change(&mut config, &mut tensors);
    let error = PromptClassifier::load(folder(&config, &tensors).path())
        .err()
        .unwrap_or_else(|| panic!("it was taken; expected {words:?}"));
    let error = error.to_string();
    for word in words {
        assert!(error.contains(word), "{error}: {word}");
    }
}

fn zeros(rows: usize, columns: usize) -> Tensor {
    Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).expect("zeros")
}

#[test]
fn weights_that_do_not_fit_are_refused_by_the_name_of_their_head() {
    let file = "model.safetensors";
    refused(
        |_, tensors| drop(tensors.insert("head_2.fc.weight".into(), zeros(3, HIDDEN))),
        &[
            file,
            "head_2",
            "reasoning",
            "[3, 16]",
            "as they were published",
        ],
    );
    refused(
        |_, tensors| drop(tensors.remove("head_7.fc.bias")),
        &[file, "head_7", "constraint_ct", "not found"],
    );
    refused(
        |_, tensors| drop(tensors.insert("head_8.fc.weight".into(), zeros(2, HIDDEN))),
        &[file, "head_8", "8 targets"],
    );
    let words = "backbone.embeddings.word_embeddings.weight";
    refused(
        |_, tensors| drop(tensors.insert(words.into(), zeros(24, 8))),
        &[file, words, "config.json describes"],
    );
    // Saved again with sorted keys: the first head would be that of the constraints.
    refused(
        |config, _| {
            let sizes = config["target_sizes"].as_object().expect("an object");
            let mut sorted: Vec<_> = sizes.clone().into_iter().collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            config["target_sizes"] = sorted.into_iter().collect::<Map<_, _>>().into();
        },
        &[
            file,
            "head_0",
            "constraint_ct",
            "their order is that of the heads",
        ],
    );
}

#[test]
fn maps_that_are_missing_or_do_not_fit_are_refused_by_their_name() {
    for map in [
        "target_sizes",
        "task_type_map",
        "weights_map",
        "divisor_map",
    ] {
        let remove = |config: &mut Value| config.as_object_mut().and_then(|c| c.remove(map));
        refused(|config, _| drop(remove(config)), &["config.json", map]);
    }
    let set = |pointer: &'static str, value: Value| {
        move |config: &mut Value, _: &mut Tensors| {
            *config.pointer_mut(pointer).expect("it is there") = value;
        }
    };
    refused(
        set("/target_sizes/reasoning", json!(0)),
        &["target_sizes", "reasoning"],
    );
    refused(
        set("/target_sizes", json!({"task_type": 4})),
        &["target_sizes has no creativity_scope"],
    );
    refused(
        set("/task_type_map", json!({"0": "a", "1": "b", "2": "c"})),
        &["task_type_map", "class 3"],
    );
    refused(
        set("/weights_map/domain_knowledge", json!([1, 2])),
        &["weights_map", "domain_knowledge", "2 weights", "4 classes"],
    );
    refused(
        set("/divisor_map/creativity_scope", json!(0)),
        &["divisor_map", "creativity_scope"],
    );
}

#[test]
fn a_backbone_that_cannot_be_computed_is_refused() {
    refused(
        |config, _| config["conv_kernel_size"] = json!(3),
        &["config.json", "conv_kernel_size is 3"],
    );
    refused(
        |config, _| config["num_attention_heads"] = json!(0),
        &["config.json", "impossible"],
    );
    refused(
        |config, _| config["hidden_act"] = json!("swish"),
        &["config.json", "backbone's settings", "swish"],
    );
    refused(
        |config, _| config["pad_token_id"] = json!(24),
        &["tokenizer.json", "pad_token_id", "24"],
    );
    refused(
        |config, _| {
            let written = config.as_object_mut().expect("an object");
            written.remove("hidden_size");
            written.insert("base_model".into(), json!("somebody/else"));
        },
        &["config.json", "somebody/else", BASE_MODEL],
    );
}

#[test]
fn a_configuration_without_a_backbone_gets_that_of_the_base_model_it_names() {
    let mut config = config();
    let written = config.as_object_mut().expect("an object");
    written.remove("hidden_size");
    written.insert("base_model".into(), json!("microsoft/DeBERTa-v3-base"));
    let settings = backbone_config(written).expect("it is known");
    assert_eq!(
        (settings.hidden_size, settings.num_hidden_layers),
        (768, 12)
    );
    assert_eq!(settings.vocab_size, 128_100, "not that of the rest");
    assert_eq!(settings.max_position_embeddings, 512);
    assert_eq!(settings.pos_att_type, ["p2c", "c2p"]);
}

#[test]
fn weights_that_give_no_number_are_an_error_and_no_score() {
    let config = config();
    let mut tensors = tensors(&config);
    let bias = Tensor::new(&[f32::NAN, 0.0], &Device::Cpu).expect("two");
    tensors.insert("head_2.fc.bias".into(), bias);
    let error = loaded(&config, &tensors)
        .classify(&["w1"])
        .expect_err("no numbers");
    assert!(error.to_string().contains("damaged"), "{error}");
}
