//! Nanoseconds against the number of connections, as SVG.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::measure::Measured;

const SIZE: (u32, u32) = (720, 420);
const COLOURS: [RGBColor; 2] = [RGBColor(0x1f, 0x77, 0xb4), RGBColor(0xd6, 0x5f, 0x0e)];

/// Draws the curves that there are results for. Returns whether there were any.
pub fn draw(results: &[Measured], path: &Path) -> Result<bool> {
    let mut curves: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for result in results {
        if let Some((curve, connections)) = result.plot {
            curves.entry(curve).or_default().push((f64::from(connections), result.net.median));
        }
    }
    let points = || curves.values().flatten();
    if curves.values().all(|curve| curve.len() < 2) {
        return Ok(false);
    }
    let most = points().map(|point| point.0).fold(1.0, f64::max);
    let top = points().map(|point| point.1).fold(0.0, f64::max) * 1.1;
    paint(&curves, most, top, path).map_err(|error| anyhow!("could not draw {}: {error}", path.display()))?;
    Ok(true)
}

fn paint(
    curves: &BTreeMap<&str, Vec<(f64, f64)>>,
    most: f64,
    top: f64,
    path: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("What a packet of an established connection costs", ("sans-serif", 18))
        .margin(12)
        .margin_right(40)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d((1.0..most).log_scale(), 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("live connections, hit at random")
        .y_desc("ns above the base program, median")
        .x_label_formatter(&|connections| format!("{connections:.0}"))
        .y_label_formatter(&|ns| format!("{ns:.0}"))
        .label_style(("sans-serif", 13))
        .light_line_style(RGBColor(0xee, 0xee, 0xee))
        .draw()?;
    for ((name, points), colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .label_font(("sans-serif", 14))
        .draw()?;
    area.present()?;
    Ok(())
}
