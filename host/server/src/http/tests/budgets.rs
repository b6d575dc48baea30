//! Budgets as clients and operators meet them.

use super::*;
use crate::budgets::{Budgets, BudgetsConfig};
use crate::config::ServerConfig;
use crate::http::testing::house_on_budget;

/// 2026-11-26T10:00:00Z: the day has fourteen hours left.
const TEN: i64 = 1_795_687_200;
const PATH: &str = "/admin/v1/budgets";

fn start(limits: &str) -> Arc<House> {
    let config: BudgetsConfig = toml::from_str(limits).unwrap();
    let budgets = Budgets::open(&config, None, None, Box::new(|| TEN));
    let mut server = ServerConfig::default();
    for (key, tenant) in [("sk-a", "acme"), ("sk-b", "bell")] {
        server.api_keys.insert(key.into(), tenant.into());
    }
    house_on_budget(&server, budgets.unwrap())
}

const A_DAY: &str =
    "[limits.energy]\ntenant = \"acme\"\nunit = \"joules\"\nlimit = 70\nper = \"day\"\n";

/// Ten words, so ten tokens, of a length for which the built-in router takes the large tier.
fn long_question() -> String {
    vec!["x".repeat(59); 10].join(" ")
}

async fn ask_as(house: &Arc<House>, key: &str, extra: &str) -> (StatusCode, HeaderMap, String) {
    let extra = format!(r#","max_tokens":10{extra}"#);
    let mut asked = request("POST", CHAT, chat_body(&long_question(), &extra));
    let bearer = format!("Bearer {key}").parse().unwrap();
    asked.headers_mut().insert("authorization", bearer);
    send(house, asked).await
}

fn tier(answer: &(StatusCode, HeaderMap, String)) -> &str {
    assert_eq!(answer.0, 200, "{}", answer.2);
    answer.1["x-homeostat-tier"].to_str().unwrap()
}

/// What the admin API says, once nothing is reserved any more: a request is settled a moment
/// after its answer.
async fn settled(house: &Arc<House>) -> Value {
    loop {
        let (status, _, text) = send(house, request("GET", PATH, "")).await;
        assert_eq!(status, 200, "{text}");
        let budget = json_of(&text)["budgets"][0].clone();
        if budget["reserved"] == 0.0 {
            return budget;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_tenant_that_spends_its_joules_gets_smaller_tiers_and_then_a_time_to_come_back() {
    let house = start(A_DAY);
    let mut tiers = Vec::new();
    for _ in 0..6 {
        let answer = ask_as(&house, "sk-a", "").await;
        if answer.0 != 200 {
            let words = ["budget energy", "0 of 70.00 J", "10.00 J", "14 h"];
            let error = refused(&answer, 429, &words);
            assert_eq!(error["code"], "budget_exhausted");
            assert_eq!(error["type"], "rate_limit_error");
            assert_eq!(answer.1["retry-after"], (14 * 3_600).to_string().as_str());
            tiers.push("429".into());
            continue;
        }
        assert_eq!(answer.1["x-homeostat-budget"], "energy");
        tiers.push(tier(&answer).to_string());
        settled(&house).await;
    }
    assert_eq!(tiers, ["large", "large", "small", "429", "429", "429"]);
    let other = ask_as(&house, "sk-b", "").await;
    assert_eq!(tier(&other), "large");
    assert!(!other.1.contains_key("x-homeostat-budget"));
    let budget = settled(&house).await;
    assert_eq!(budget["spent"], 70.0);
    assert_eq!(budget["refused"], 3);
    assert_eq!(budget["scope"], "acme");
    assert_eq!(budget["unit"], "joules");
    assert_eq!(budget["renews_unix_s"], TEN + 14 * 3_600);
}

#[tokio::test]
async fn a_change_by_an_operator_moves_the_next_request() {
    let house = start(A_DAY);
    let change = |name: &str, body: &str| {
        let path = format!("{PATH}/{name}");
        let change = request("PUT", &path, body.to_string());
        let house = house.clone();
        async move { send(&house, change).await }
    };
    assert_eq!(tier(&ask_as(&house, "sk-a", "").await), "large");
    settled(&house).await;
    let (status, _, text) = change("energy", r#"{"limit":45}"#).await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(json_of(&text)["left"], 15.0);
    assert_eq!(tier(&ask_as(&house, "sk-a", "").await), "small");
    settled(&house).await;
    change("energy", r#"{"limit":1000}"#).await;
    assert_eq!(tier(&ask_as(&house, "sk-a", "").await), "large");

    refused(
        &change("enrgy", r#"{"limit":1}"#).await,
        404,
        &["enrgy", "energy"],
    );
    refused(
        &change("energy", r#"{"limit":-1}"#).await,
        400,
        &["-1", "0 to"],
    );
    refused(
        &change("energy", r#"{"limits":1}"#).await,
        400,
        &["limits", "limit"],
    );
    let mut far = request("PUT", &format!("{PATH}/energy"), r#"{"limit":1}"#);
    let peer = SocketAddr::from(([10, 0, 0, 1], 4000));
    far.extensions_mut().insert(ConnectInfo(peer));
    assert_eq!(send(&house, far).await.0, 403);
}

#[tokio::test]
async fn a_client_that_leaves_pays_for_what_was_written_and_several_answers_for_each() {
    let house = start(&A_DAY.replace("70", "1000"));
    let body = chat_body("forever", r#","stream":true,"max_tokens":10"#);
    let body = body.replace("auto", "small");
    let mut asked = request("POST", CHAT, body);
    let bearer = "Bearer sk-a".parse().unwrap();
    asked.headers_mut().insert("authorization", bearer);
    let response = router(house.clone()).oneshot(asked).await.unwrap();
    assert_eq!(response.headers()["x-homeostat-tier"], "small");
    let mut stream = response.into_body().into_data_stream();
    for _ in 0..3 {
        stream.next().await.unwrap().unwrap();
    }
    drop(stream);
    let spent = settled(&house).await["spent"].as_f64().unwrap();
    assert!(spent >= 1.0, "{spent}");
    assert_eq!(ask_as(&house, "sk-a", r#","n":3"#).await.0, 200);
    let then = settled(&house).await["spent"].as_f64().unwrap();
    assert_eq!(then - spent, 3.0 * 30.0);
}

#[tokio::test]
async fn a_named_tier_is_paid_or_refused_and_nothing_else_is_taken_for_it() {
    let house = start(&A_DAY.replace("70", "20"));
    let named = |model: &str| {
        let body = chat_body("a b", r#","max_tokens":10"#).replace("auto", model);
        let mut asked = request("POST", CHAT, body);
        let bearer = "Bearer sk-a".parse().unwrap();
        asked.headers_mut().insert("authorization", bearer);
        let house = house.clone();
        async move { send(&house, asked).await }
    };
    refused(&named("large").await, 429, &["tier large", "30.00 J"]);
    assert_eq!(tier(&named("small").await), "small");
    assert_eq!(settled(&house).await["spent"], 2.0);
}

#[tokio::test]
async fn texts_are_embedded_for_as_long_as_the_budget_of_their_tenant_lasts() {
    let house = start(&A_DAY.replace("70", "30"));
    let embed = || {
        let mut asked = request("POST", "/v1/embeddings", r#"{"input":"abc"}"#);
        let bearer = "Bearer sk-a".parse().unwrap();
        asked.headers_mut().insert("authorization", bearer);
        let house = house.clone();
        async move { send(&house, asked).await }
    };
    let (status, headers, text) = embed().await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(headers["x-homeostat-budget"], "energy");
    assert_eq!(tier(&ask_as(&house, "sk-a", "").await), "large");
    assert_eq!(settled(&house).await["left"], 0.0);
    let answer = embed().await;
    let error = refused(&answer, 429, &["budget energy", "tier lengths"]);
    assert_eq!(error["code"], "budget_exhausted");
    assert!(answer.1.contains_key("retry-after"));
}

#[tokio::test]
async fn metrics_say_what_is_left() {
    let house = start(A_DAY);
    ask_as(&house, "sk-a", "").await;
    settled(&house).await;
    let (_, _, text) = send(&house, request("GET", "/metrics", "")).await;
    for (name, value) in [("limit", 70), ("spent", 30), ("reserved", 0), ("left", 40)] {
        let labels = r#"{budget="energy",scope="acme",unit="joules"}"#;
        let line = format!("homeostat_budget_{name}{labels} {value}\n");
        assert!(text.contains(&line), "{line}");
    }
    let (_, _, text) = send(&super::house(|_| {}), request("GET", "/metrics", "")).await;
    assert!(!text.contains("homeostat_budget"), "no budget, no line");
}
