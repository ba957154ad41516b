//! What was measured of the map server, as pictures.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::report::{Quantile, Report};
use super::rounds::RATES;

const SIZE: (u32, u32) = (800, 500);

/// A line of a plot: its name, and its points.
type Line = (String, Vec<(f64, f64)>);

/// Draws all plots into `directory`.
///
/// # Errors
///
/// When a file cannot be written.
pub(super) fn all(report: &Report, directory: &Path) -> Result<()> {
    let quantiles: [Quantile; 3] = [
        ("p50", |it| it.p50),
        ("p90", |it| it.p90),
        ("p99", |it| it.p99),
    ];
    let growth = quantiles.map(|(name, which)| {
        let times = report.answer_times("growing", RATES[0], which).into_iter();
        let points = times.map(|(mappings, all)| (f64::from(mappings), all.p50));
        (name.to_owned(), points.collect())
    });
    let file = directory.join("answer-time-by-mappings.svg");
    lines(&file, "mappings", "answer time, us", &growth)?;

    let loads = ["echo", "few", "many", "grpc"]
        .into_iter()
        .flat_map(|subject| {
            quantiles.map(|(name, which)| {
                let points = RATES.into_iter().filter_map(|rate| {
                    let times = report.answer_times(subject, rate, which);
                    times.values().next().map(|all| (rate as f64, all.p50))
                });
                (format!("{subject} {name}"), points.collect())
            })
        });
    let file = directory.join("answer-time-by-load.svg");
    let loads: Vec<_> = loads.collect();
    lines(&file, "requests per second", "answer time, us", &loads)?;

    let per_core = |metric: &str, subject: &'static str, name: &'static str| {
        let each_us = report.median(metric, subject)?;
        Some((name, 1e6 / each_us))
    };
    let capacity = [
        per_core("request_us", "echo", "echo"),
        per_core("request_us", "few", "requests, few"),
        per_core("request_us", "many", "requests, many"),
        per_core("register_us", "changed", "changed"),
        per_core("register_us", "refreshed", "refreshed"),
        per_core("request_us", "grpc", "gRPC, many"),
        per_core("request_us", "oor_few", "OOR, few"),
        per_core("request_us", "oor_many", "OOR, many"),
    ];
    let file = directory.join("per-core.svg");
    bars(&file, "answers per second and core", &capacity)?;
    let bytes = |subject| Some((subject, report.median("bytes_per_mapping", subject)?));
    let memory = ["v4", "v6", "oor"].map(bytes);
    bars(&directory.join("memory.svg"), "bytes per mapping", &memory)?;
    let waits = |subject| Some((subject, report.median("asked_p99_us", subject)?));
    let storm = ["calm", "storm"].map(waits);
    let file = directory.join("storm.svg");
    bars(&file, "p99 of the answer time, us", &storm)
}

/// Draws lines over logarithmic axes, if there are any.
fn lines(file: &Path, x: &str, y: &str, lines: &[Line]) -> Result<()> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    if points().next().is_none() {
        return Ok(());
    }
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(1.0, f64::max);
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(drawing)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (500.0..most(|it| it.0) * 1.5).log_scale(),
            (1.0..most(|it| it.1) * 1.5).log_scale(),
        )
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .draw()
        .map_err(drawing)?;
    for (position, (name, points)) in lines.iter().enumerate() {
        let colour = Palette99::pick(position).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), &colour).point_size(3))
            .map_err(drawing)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
    }
    let mut labels = chart.configure_series_labels();
    labels
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()
        .map_err(drawing)?;
    root.present().map_err(drawing)
}

/// Draws a bar for each value that there is.
fn bars(file: &Path, y: &str, values: &[Option<(&str, f64)>]) -> Result<()> {
    let finite: Vec<_> = values.iter().flatten().collect();
    if finite.is_empty() {
        return Ok(());
    }
    let most = finite.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(drawing)?;
    let count = i32::try_from(finite.len())?;
    let mut chart = ChartBuilder::on(&root)
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(90)
        .build_cartesian_2d((0..count - 1).into_segmented(), 0.0..most * 1.1)
        .map_err(drawing)?;
    let name = |at: &SegmentValue<i32>| match at {
        SegmentValue::CenterOf(at) => {
            let at = usize::try_from(*at).ok().and_then(|at| finite.get(at));
            at.map_or_else(String::new, |(name, _)| (*name).to_owned())
        }
        SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
    };
    let mut mesh = chart.configure_mesh();
    mesh.y_desc(y).disable_x_mesh().x_label_formatter(&name);
    mesh.draw().map_err(drawing)?;
    let bars = (0..count).zip(&finite).map(|(at, (_, value))| {
        let corners = [
            (SegmentValue::Exact(at), 0.0),
            (SegmentValue::Exact(at + 1), *value),
        ];
        let mut bar = Rectangle::new(corners, BLUE.mix(0.6).filled());
        bar.set_margin(0, 0, 15, 15);
        bar
    });
    chart.draw_series(bars).map_err(drawing)?;
    root.present().map_err(drawing)
}

fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("draw: {error}")
}
