//! How signals become requests, and what is learnt from refusals.

use proptest::prelude::*;

use super::*;

fn holding(start: u16, count: u16) -> Span {
    Span { table: Table::Holding, start, count }
}

fn plan_all(spans: &[Span], limits: Limits, memory: &Memory) -> Vec<Request> {
    let due: Vec<usize> = (0..spans.len()).collect();
    plan(spans, &due, limits, memory, Instant::now())
}

const LIMITS: Limits = Limits { max_registers: 125, gap: 8 };

#[test]
fn neighbours_share_a_request_and_small_gaps_are_read_through() {
    let spans = [holding(111, 2), holding(100, 2), holding(102, 1), holding(121, 1)];
    let requests = plan_all(&spans, LIMITS, &Memory::default());
    assert_eq!(requests, [Request { span: holding(100, 22), wants: vec![1, 2, 0, 3] }]);
    let requests = plan_all(&spans, Limits { gap: 7, ..LIMITS }, &Memory::default());
    let found: Vec<Span> = requests.iter().map(|r| r.span).collect();
    assert_eq!(found, [holding(100, 3), holding(111, 2), holding(121, 1)]);
}

#[test]
fn tables_do_not_mix_and_bits_have_wider_limits() {
    let coil = |start| Span { table: Table::Coil, start, count: 1 };
    let spans = [coil(0), coil(128), coil(1999), holding(0, 1)];
    let limits = Limits { max_registers: 125, gap: 117 };
    let found: Vec<Span> = plan_all(&spans, limits, &Memory::default()).iter().map(|r| r.span).collect();
    assert_eq!(found, [Span { count: 2000, ..coil(0) }, holding(0, 1)]);
}

#[test]
fn the_end_of_the_address_space_is_reached() {
    let spans = [holding(65534, 2), holding(65535, 1), holding(65530, 4)];
    let requests = plan_all(&spans, LIMITS, &Memory::default());
    assert_eq!(requests, [Request { span: holding(65530, 6), wants: vec![2, 0, 1] }]);
}

#[test]
fn a_split_keeps_equal_spans_together() {
    let spans = [holding(5, 1), holding(5, 1), holding(5, 1), holding(6, 1)];
    let request = plan_all(&spans, LIMITS, &Memory::default()).remove(0);
    let (left, right) = split(&request, &spans).expect("two halves");
    assert_eq!(left, Request { span: holding(5, 1), wants: vec![0, 1, 2] });
    assert_eq!(right, Request { span: holding(6, 1), wants: vec![3] });
    assert_eq!(split(&left, &spans), None);
}

#[test]
fn a_refused_span_is_left_alone_for_longer_and_longer() {
    let mut memory = Memory::default();
    let span = holding(7, 2);
    let mut now = Instant::now();
    assert_eq!(memory.advice(span, now), Advice::Read);
    for seconds in [5, 10, 20, 40, 60, 60] {
        memory.refused(span, Cause::Exception, now);
        now += Duration::from_secs(seconds);
        assert_eq!(memory.advice(span, now - Duration::from_millis(1)), Advice::Leave, "{seconds}");
        assert_eq!(memory.advice(span, now), Advice::Retry, "{seconds}");
    }
    memory.refused(holding(9, 1), Cause::Exception, now);
    assert_eq!(memory.advice(holding(9, 1), now), Advice::Leave);
    memory.answered(span, now);
    assert_eq!(memory.advice(span, now), Advice::Read);
    assert_eq!(memory.advice(holding(9, 1), now), Advice::Retry);
}

#[test]
fn holes_are_not_read_through_unless_they_are_wanted() {
    let mut memory = Memory::default();
    memory.refused(holding(101, 2), Cause::Exception, Instant::now());
    let found = |spans: &[Span]| plan_all(spans, LIMITS, &memory).len();
    assert_eq!(found(&[holding(100, 1), holding(103, 1)]), 2);
    assert_eq!(found(&[holding(100, 1), holding(101, 1)]), 1);
    assert_eq!(found(&[holding(100, 1), holding(101, 1), holding(103, 1)]), 2);
}

#[test]
fn a_cut_holds_for_an_hour() {
    let mut memory = Memory::default();
    let now = Instant::now();
    memory.cut(Table::Holding, 1, now);
    let requests = |at| plan(&[holding(0, 1), holding(1, 1)], &[0, 1], LIMITS, &memory, at).len();
    assert_eq!(requests(now + Memory::CUT_HOLDS - Duration::from_millis(1)), 2);
    assert_eq!(requests(now + Memory::CUT_HOLDS), 1);
}

/// A device that has only some addresses, and what bisection makes of it.
fn read_all(spans: &[Span], missing: &[u16], memory: &mut Memory) -> (Vec<usize>, usize) {
    let now = Instant::now();
    let due: Vec<usize> = (0..spans.len()).filter(|i| memory.advice(spans[*i], now) == Advice::Read).collect();
    let mut queue = plan(spans, &due, LIMITS, memory, now);
    let (mut got, mut asked) = (Vec::new(), 0);
    while let Some(request) = queue.pop() {
        asked += 1;
        let covers = |a: &u16| u32::from(request.span.start) <= u32::from(*a) && u32::from(*a) < request.span.end();
        if !missing.iter().any(covers) {
            got.extend(request.wants);
        } else if let Some((left, right)) = split(&request, spans) {
            queue.extend([left, right]);
        } else {
            memory.refused(request.span, Cause::Exception, now);
        }
    }
    got.sort_unstable();
    (got, asked)
}

#[test]
fn one_missing_address_hides_no_neighbour_and_costs_little() {
    let spans: Vec<Span> = (0..60).map(|i| holding(i * 2, 2)).collect();
    let mut memory = Memory::default();
    let all_but_20: Vec<usize> = (0..60).filter(|i| *i != 20).collect();
    let (got, asked) = read_all(&spans, &[41], &mut memory);
    assert_eq!(got, all_but_20);
    assert!(asked <= 13, "{asked} requests");
    assert_eq!(read_all(&spans, &[41], &mut memory), (all_but_20, 2));
}

fn any_spans(max: usize) -> impl Strategy<Value = Vec<Span>> {
    let table = prop::sample::select(vec![Table::Holding, Table::Input]);
    let span = (table, 0..40_u16, prop::sample::select(vec![1_u16, 2, 4]));
    prop::collection::vec(span.prop_map(|(table, start, count)| Span { table, start, count }), 1..=max)
}

fn any_memory() -> impl Strategy<Value = Memory> {
    (any_spans(2), prop::collection::vec(0..44_u16, 0..3), 0..3_usize).prop_map(|(holes, cuts, n)| {
        let mut memory = Memory::default();
        holes.into_iter().take(n).for_each(|h| memory.refused(h, Cause::Exception, Instant::now()));
        cuts.into_iter().for_each(|c| memory.cut(Table::Holding, c, Instant::now()));
        memory
    })
}

/// Whether these spans may share a request, by the words of [`plan`]'s documentation.
fn may_share(group: &[Span], all: &[Span], limits: Limits, memory: &Memory) -> bool {
    if group.len() == 1 {
        return true;
    }
    let table = group[0].table;
    let (start, end) = (group.iter().map(|s| s.start).min(), group.iter().map(|s| s.end()).max());
    let (start, end) = (u32::from(start.expect("one")), end.expect("one"));
    let wanted = |a: u32| group.iter().any(|s| u32::from(s.start) <= a && a < s.end());
    let in_hole = |a: u32| memory.holes.keys().any(|h| h.table == table && u32::from(h.start) <= a && a < h.end());
    let straddled = |c: u16| all.iter().any(|s| s.table == table && s.start < c && u32::from(c) < s.end());
    let mut idle = 0;
    for a in start..end {
        idle = if wanted(a) { 0 } else { idle + 1 };
        if idle > u32::from(limits.gap) || (idle > 0 && in_hole(a)) {
            return false;
        }
    }
    let cut = |c: &(Table, u16)| c.0 == table && start < u32::from(c.1) && u32::from(c.1) < end && !straddled(c.1);
    group.iter().all(|s| s.table == table)
        && end - start <= u32::from(limits.max_registers)
        && !memory.cuts.keys().any(cut)
}

/// The fewest groups over every way to partition the spans.
fn fewest(rest: &[Span], groups: &mut Vec<Vec<Span>>, all: &[Span], limits: Limits, memory: &Memory) -> usize {
    let Some((next, rest)) = rest.split_first() else {
        return if groups.iter().all(|g| may_share(g, all, limits, memory)) { groups.len() } else { usize::MAX };
    };
    let mut best = usize::MAX;
    for i in 0..=groups.len() {
        if i == groups.len() {
            groups.push(Vec::new());
        }
        groups[i].push(*next);
        best = best.min(fewest(rest, groups, all, limits, memory));
        groups[i].pop();
        groups.retain(|g| !g.is_empty());
    }
    best
}

proptest! {
    #[test]
    fn every_span_is_fetched_once_within_the_limits(
        spans in any_spans(30), max in 4..=60_u16, gap in 0..=12_u16, memory in any_memory(),
    ) {
        let limits = Limits { max_registers: max, gap };
        let requests = plan_all(&spans, limits, &memory);
        let mut brought: Vec<usize> = requests.iter().flat_map(|r| r.wants.clone()).collect();
        brought.sort_unstable();
        prop_assert_eq!(brought, (0..spans.len()).collect::<Vec<_>>());
        for request in &requests {
            let group: Vec<Span> = request.wants.iter().map(|i| spans[*i]).collect();
            prop_assert_eq!(u32::from(request.span.start), group.iter().map(|s| u32::from(s.start)).min().unwrap());
            prop_assert_eq!(request.span.end(), group.iter().map(|s| s.end()).max().unwrap());
            prop_assert!(may_share(&group, &spans, limits, &memory), "{:?}", request);
        }
    }

    #[test]
    fn no_other_plan_needs_fewer_requests(
        spans in any_spans(6), max in 4..=20_u16, gap in 0..=6_u16, memory in any_memory(),
    ) {
        let limits = Limits { max_registers: max, gap };
        let best = fewest(&spans, &mut Vec::new(), &spans, limits, &memory);
        prop_assert_eq!(plan_all(&spans, limits, &memory).len(), best);
    }

    #[test]
    fn whatever_is_missing_the_rest_is_read_in_the_same_round(
        spans in any_spans(20), missing in prop::collection::vec(0..44_u16, 0..6),
    ) {
        let has = |s: &Span| !missing.iter().any(|a| s.start <= *a && u32::from(*a) < s.end());
        let good: Vec<usize> = (0..spans.len()).filter(|i| has(&spans[*i])).collect();
        let mut memory = Memory::default();
        prop_assert_eq!(&read_all(&spans, &missing, &mut memory).0, &good);
        prop_assert_eq!(&read_all(&spans, &missing, &mut memory).0, &good);
        prop_assert_eq!(memory.holes(), spans.iter().filter(|s| !has(s)).collect::<BTreeSet<_>>().len());
    }
}
