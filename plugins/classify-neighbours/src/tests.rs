//! Neighbours and clusters that are made up, and those that the component brings.

use super::*;

/// Two dimensions: east is simple, north is complex, a few steps between them medium.
fn compass() -> Vec<u8> {
    let known: [(u8, [i8; 2]); 5] = [
        (0, [127, 0]),
        (0, [126, 15]),
        (1, [90, 90]),
        (2, [15, 126]),
        (2, [0, 127]),
    ];
    let mut bytes = b"HNEI0001".to_vec();
    bytes.extend(2_u32.to_le_bytes());
    bytes.extend(u32::try_from(known.len()).expect("five").to_le_bytes());
    bytes.extend(known.iter().map(|(label, _)| label));
    for _ in &known {
        bytes.extend((1.0_f32 / 127.0).to_le_bytes());
    }
    for (_, vector) in known {
        bytes.extend(vector.map(|x| x as u8));
    }
    bytes
}

fn at(vector: [f32; 2], voters: usize) -> Classification {
    let bytes = compass();
    let neighbours = Neighbours::read(&bytes).expect("they are made by the rules");
    let found = classify(&neighbours, &vector, voters).expect("two finite numbers");
    homeostat_sdk::check::classification(&found).expect("three probabilities");
    found
}

#[test]
fn the_nearest_decide() {
    let (east, north) = (at([1.0, 0.0], 2), at([0.0, 1.0], 2));
    assert!(east.p_simple > 0.8, "{east:?}");
    assert!(north.p_complex > 0.7, "{north:?}");
    let between = at([std::f32::consts::FRAC_1_SQRT_2; 2], 1);
    assert!(between.p_medium > between.p_simple && between.p_medium > between.p_complex);
    assert_eq!(east.confidence, CONFIDENCE_MAX);
}

#[test]
fn what_is_far_from_all_is_ordinary_and_unsure() {
    let far = at([-1.0, 0.0], 5);
    assert_eq!([far.p_simple, far.p_medium, far.p_complex], ORDINARY);
    assert_eq!(far.confidence, 0.0);
    // Halfway between far and near, half of each.
    let middle = (KNOWN.0 + KNOWN.1) / 2.0;
    let half = at([middle, -(1.0 - middle * middle).sqrt()], 2);
    assert!(
        (half.confidence - CONFIDENCE_MAX / 2.0).abs() < 0.02,
        "{half:?}"
    );
    assert!(half.p_simple > ORDINARY[0] && half.p_simple < at([1.0, 0.0], 2).p_simple);
}

#[test]
fn an_embedding_of_another_encoder_is_refused() {
    let bytes = compass();
    let neighbours = Neighbours::read(&bytes).expect("they are made by the rules");
    for vector in [
        &[1.0_f32][..],
        &[1.0, 0.0, 0.0],
        &[f32::NAN, 0.0],
        &[1.0, f32::INFINITY],
    ] {
        let refused = classify(&neighbours, vector, 1);
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    }
}

#[test]
fn bytes_that_are_no_neighbours_are_told_apart_at_every_length() {
    let bytes = compass();
    for length in 0..bytes.len() {
        assert!(Neighbours::read(&bytes[..length]).is_none(), "{length}");
    }
    let mut wrong = bytes.clone();
    wrong[16] = 3;
    assert!(
        Neighbours::read(&wrong).is_none(),
        "a label that does not exist"
    );
    wrong = bytes;
    wrong[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(Neighbours::read(&wrong).is_none(), "more than there are");
}

#[test]
fn the_number_of_voters_is_a_number_of_neighbours() {
    assert_eq!(voters(None, 5), Ok(5));
    assert_eq!(voters(None, 1000), Ok(VOTERS));
    assert_eq!(voters(Some("5".into()), 5), Ok(5));
    for wrong in ["0", "6", "-1", "two", ""] {
        assert!(voters(Some(wrong.into()), 5).is_err(), "{wrong}");
    }
}

/// East nine of ten are simple; north half are complex.
fn two_clusters() -> Vec<u8> {
    let known: [([u32; 3], [i8; 2]); 2] = [([90, 10, 0], [127, 0]), ([25, 25, 50], [0, 127])];
    let mut bytes = b"HCLU0001".to_vec();
    bytes.extend(2_u32.to_le_bytes());
    bytes.extend(2_u32.to_le_bytes());
    bytes.extend(
        known
            .iter()
            .flat_map(|(counts, _)| counts.map(u32::to_le_bytes))
            .flatten(),
    );
    for _ in &known {
        bytes.extend((1.0_f32 / 127.0).to_le_bytes());
    }
    for (_, centre) in known {
        bytes.extend(centre.map(|x| x as u8));
    }
    bytes
}

#[test]
fn the_nearest_cluster_decides_as_far_as_it_is_near() {
    let bytes = two_clusters();
    let clusters = Clusters::read(&bytes).expect("they are made by the rules");
    let at = |vector: [f32; 2]| {
        let found = classify_by_cluster(&clusters, &vector).expect("two finite numbers");
        homeostat_sdk::check::classification(&found).expect("three probabilities");
        found
    };
    let (east, north) = (at([1.0, 0.0]), at([0.0, 1.0]));
    assert!((east.p_simple - 90.55 / 101.0).abs() < 1e-5, "{east:?}");
    assert!((north.p_complex - 50.15 / 101.0).abs() < 1e-5, "{north:?}");
    assert_eq!(east.confidence, CONFIDENCE_MAX);
    // A little east of the middle is east.
    let between = at([0.8, 0.6]);
    assert_eq!(between.p_simple, east.p_simple);
    // What is near to none is ordinary.
    let far = at([-0.6, -0.8]);
    assert_eq!([far.p_simple, far.p_medium, far.p_complex], ORDINARY);
    assert_eq!(far.confidence, 0.0);
    for vector in [&[1.0_f32][..], &[f32::NAN, 0.0]] {
        let refused = classify_by_cluster(&clusters, vector);
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    }
    for length in 0..bytes.len() {
        assert!(Clusters::read(&bytes[..length]).is_none(), "{length}");
    }
    assert!(Clusters::read(&compass()).is_none(), "neighbours are none");
    assert!(Neighbours::read(&bytes).is_none(), "clusters are none");
}

#[test]
fn the_operator_says_who_is_asked() {
    let read = |kind: Option<&str>, voters: Option<&str>| {
        Kind::read(|key| match key {
            "kind" => kind.map(str::to_owned),
            _ => voters.map(str::to_owned),
        })
    };
    let by_default = Ok(Kind::Neighbours { voters: VOTERS });
    assert_eq!(read(None, None), by_default);
    assert_eq!(read(Some("neighbours"), None), by_default);
    let few = Ok(Kind::Neighbours { voters: 3 });
    assert_eq!(read(None, Some("3")), few);
    assert_eq!(read(Some("clusters"), None), Ok(Kind::Clusters));
    assert!(read(Some("clusters"), Some("3")).is_err());
    assert!(read(Some("means"), None).is_err());
}

#[test]
fn the_clusters_that_the_component_brings_are_those_of_its_neighbours() {
    let (clusters, neighbours) = (Clusters::embedded(), Neighbours::embedded());
    assert_eq!(clusters.dimensions(), neighbours.dimensions());
    let mut kinds = [0; 3];
    for i in 0..neighbours.len() {
        kinds[neighbours.label(i) as usize] += 1;
    }
    let counts: Vec<[u32; 3]> = clusters.counts().collect();
    for (i, kind) in kinds.into_iter().enumerate() {
        assert_eq!(counts.iter().map(|c| c[i]).sum::<u32>(), kind);
    }
    for (i, count) in counts.iter().enumerate() {
        let centre = clusters.centre(i);
        let length: f32 = centre.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 0.02, "{i}: {length}");
        let (similarity, nearest) = clusters.nearest(&centre);
        assert!(similarity > 0.99 && nearest == *count, "{i}: {similarity}");
    }
}

#[test]
fn those_that_the_component_brings_are_of_unit_length_and_of_every_kind() {
    let all = Neighbours::embedded();
    assert_eq!(all.dimensions(), 384);
    assert!(all.len() >= 500, "{}", all.len());
    // Each is nearest to itself, or to another of the same text.
    let mut kinds = [0; 3];
    for i in 0..all.len() {
        let own = all.vector(i);
        let length: f32 = own.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 0.02, "{i}: {length}");
        if i % 50 == 0 {
            let near = all.similarities(&own);
            let best = near.iter().map(|n| n.0).fold(0.0, f32::max);
            assert!((near[i].0 - best).abs() < 1e-3, "{i}");
        }
        kinds[all.label(i) as usize] += 1;
    }
    assert!(kinds.iter().all(|k| *k > all.len() / 20), "{kinds:?}");
}
