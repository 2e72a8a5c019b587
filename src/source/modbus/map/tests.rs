//! Register maps in CSV, as makers write them, and the profiles made of them.

use proptest::prelude::*;

use super::super::profile;
use super::*;

fn holding() -> Assumed {
    Assumed { table: Some(Table::Holding), ..Assumed::default() }
}

#[test]
fn a_vendors_map_becomes_a_profile() {
    let map = "Register;Tag Name;Data Type;Factor;Unit;Word Order;FC\n\
        100;Motor Current (A);REAL;;A;LSW first;3\n\
        102;Speed;UINT16;0,1;1/min;;03\n\
        103;Speed;INT;/100;\"the other \"\"one\"\"\";;\n\
        0x1F;Status;WORD;;;;4\n\
        7;Door;;;;;1\n\
        40110.3;Tripped;;;;;3\n\
        110;Energy;UDINT;;kWh;big endian;3\n\
        200;Serial no;STRING(16);;;;3\n\
        201;Odd;UNIT16;;;;3\n\
        ;Nothing;INT;;;;3\n\
        ;;;;;;\n";
    let assumed = Assumed { base: 0, ..holding() };
    let got = import(map.as_bytes(), "acme.csv", &assumed).expect("a profile");
    assert_eq!(profile::problems(&got.text), [], "{}", got.text);
    insta::assert_snapshot!(got.text);
    assert_eq!(got.signals, 7);
    let told: Vec<String> = got.left_out.iter().map(|(line, why)| format!("{line}: {why}")).collect();
    assert_eq!(
        told,
        [
            "9: is a text, and a signal is a number",
            "10: \"UNIT16\" is not a type such as u16, int32 or float",
            "11: has no address",
        ]
    );
}

#[test]
fn nothing_is_guessed() {
    let left_out = |row: &str, assumed: &Assumed| {
        let map = format!("name,address,type,scale,order,table\n{row}\n");
        let got = import(map.as_bytes(), "x", assumed).expect("columns");
        got.left_out.first().map(|(_, why)| why.clone())
    };
    let none = Assumed::default();
    for (row, why) in [
        ("a,100,u16,,,", "\"100\" names no table: is it holding, input, coil or discrete?"),
        ("a,40101,,,,", "names no type: how is it to be read, as u16, i16, f32 …?"),
        ("a,40101,u16,0,,", "a scale of 0 would make every value the same"),
        ("a,40101,u16,\"0,1\",,", "\"0,1\" is no scale"),
        ("a,40101,f32,,PQRS,", "\"PQRS\" should hold each of the letters ABCD once"),
        (
            "a,100,u16,,,memory",
            "\"memory\" is not a table: coil, discrete, input, holding, or the function that reads it",
        ),
        ("a,70000,u16,,,holding", "\"holding:70000\" is not between 0 and 65535"),
    ] {
        assert_eq!(left_out(row, &none).as_deref(), Some(why), "{row}");
    }
    assert_eq!(left_out("a,100,u16,,,", &holding()), None);
    for (map, why) in [
        ("", "the file is empty"),
        ("name,where\nx,1\n", "no column is named address or register; there are: name, where"),
    ] {
        assert_eq!(import(map.as_bytes(), "x", &none), Err(why.to_owned()));
    }
}

#[test]
fn the_order_given_for_all_fits_each_width() {
    let assumed = Assumed { order: Order::parse("CDAB", 2).ok(), ..holding() };
    let map = "name,address,type\na,1,u16\nb,2,f32\nc,4,f64\n";
    let text = import(map.as_bytes(), "x", &assumed).expect("a profile").text;
    let orders: Vec<&str> = text.lines().filter(|l| l.starts_with("order")).collect();
    assert_eq!(orders, ["order = \"CDAB\"", "order = \"GHEFCDAB\""]);
}

proptest! {
    #[test]
    fn whatever_comes_what_is_made_is_a_profile(
        rows in prop::collection::vec(("[ -~]{0,9}", "[0-9x.:a-z]{0,7}", "[a-z0-9]{0,6}", "[0-9./x-]{0,5}"), 1..20),
        noise in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let kinds = ["u16", "float", "INT32", "bool"];
        let mut map = String::from("name,address,type,scale\n");
        for (i, (name, at, kind, scale)) in rows.iter().enumerate() {
            let kind = if i % 2 == 0 { kinds[i % 4] } else { kind };
            let name = name.replace('"', "");
            writeln!(map, "\"{name}\",{at},{kind},{scale}").expect("written");
        }
        let mut bytes = map.into_bytes();
        bytes.extend(noise);
        if let Ok(got) = import(&bytes, "x", &holding()) && got.signals > 0 {
            prop_assert_eq!(profile::problems(&got.text), [], "{}", got.text);
        }
    }
}
