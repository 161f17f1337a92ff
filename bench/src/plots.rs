//! The results as plots: bars, or lines where the points grow.
//!
//! They have no background, and a grey for all text that is read on a dark page as well as on a light one.

use std::fs;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::figure;
use crate::results::{Axis, Results, Table};

const TEXT: RGBColor = RGBColor(118, 118, 118);
/// The bars of the others.
const OTHERS: RGBColor = RGBColor(148, 158, 168);

const WIDTH: u32 = 760;
/// The height of a bar and the space below it.
const BAR: i32 = 22;
/// The room for a server's name, and for a figure behind a bar.
const NAME: i32 = 110;
const FIGURE: i32 = 80;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// The name of a table's plot: its group's, and a number from the second table on.
pub(crate) fn name(group: &str, table: usize) -> String {
    if table == 0 { format!("plots/{group}.svg") } else { format!("plots/{group}-{}.svg", table + 1) }
}

/// Draws every table.
pub(crate) fn write(results: &Results, folder: &Path) {
    fs::create_dir_all(folder.join("plots")).expect("the plots' folder can be made");
    for group in &results.groups {
        for (at, table) in group.tables.iter().enumerate() {
            let path = folder.join(name(&group.name, at));
            let drawn = match &table.axis {
                Some(axis) => lines(table, axis, &path),
                None => bars(table, &path),
            };
            drawn.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

/// A server's colour: always the same.
fn colour(server: &str) -> RGBColor {
    match server {
        "steadfast" => RGBColor(38, 120, 220),
        "beside" => RGBColor(120, 180, 250),
        "nginx" => RGBColor(40, 160, 80),
        "HAProxy" => RGBColor(200, 90, 40),
        "Caddy" => RGBColor(170, 80, 190),
        "net/http" => RGBColor(60, 170, 190),
        "axum::serve" => RGBColor(200, 150, 30),
        "ecdysis" => RGBColor(200, 70, 110),
        _ => OTHERS,
    }
}

fn text(size: i32, horizontal: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&TEXT).pos(Pos::new(horizontal, VPos::Center))
}

// ---------------------------------------------------------------------------------------------------------------
// Bars
// ---------------------------------------------------------------------------------------------------------------

/// A panel for each point, for one's figures may be a thousand times another's.
fn bars(table: &Table, path: &Path) -> Drawn {
    let panels: Vec<Vec<(&str, f64)>> = (0..table.points.len())
        .map(|at| {
            let servers = table.series.iter().map(|series| series.server.as_str());
            servers.filter_map(|server| Some((server, table.median(server, at)?))).collect()
        })
        .collect();
    let heights = panels.iter().map(|bars| (i32::try_from(bars.len()).unwrap_or(0) + 2) * BAR);
    let height = heights.clone().sum::<i32>() + BAR + 10;
    let root = SVGBackend::new(path, (WIDTH, height.cast_unsigned())).into_drawing_area();
    let title = format!("{}, {}", table.title, table.unit);
    root.draw(&Text::new(title, (10, 14), text(15, HPos::Left)))?;
    let mut top = BAR + 10;
    for ((panel, point), height) in panels.iter().zip(&table.points).zip(heights) {
        draw_panel(&root, top, point, panel)?;
        top += height;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(root: &Area, top: i32, point: &str, bars: &[(&str, f64)]) -> Drawn {
    root.draw(&Text::new(point.to_owned(), (10, top + BAR / 2), text(13, HPos::Left)))?;
    let most = bars.iter().map(|&(_, value)| value).fold(f64::MIN_POSITIVE, f64::max);
    let longest = f64::from(WIDTH.cast_signed() - NAME - FIGURE);
    for (at, (server, value)) in (1..).zip(bars) {
        let (top, middle) = (top + at * BAR, top + at * BAR + BAR / 2);
        #[expect(clippy::cast_possible_truncation, reason = "it is within the plot")]
        let end = NAME + (value / most * longest) as i32;
        let fill = if *server == "steadfast" { colour(server) } else { OTHERS };
        root.draw(&Text::new((*server).to_owned(), (NAME - 8, middle), text(13, HPos::Right)))?;
        root.draw(&Rectangle::new([(NAME, top + 3), (end.max(NAME + 1), top + BAR - 3)], fill.filled()))?;
        root.draw(&Text::new(figure(*value), (end + 6, middle), text(13, HPos::Left)))?;
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------
// Lines
// ---------------------------------------------------------------------------------------------------------------

fn lines(table: &Table, axis: &Axis, path: &Path) -> Drawn {
    let numbers: Vec<f64> =
        table.points.iter().filter_map(|point| point.replace(',', "").parse().ok()).collect();
    let curves: Vec<(&str, Vec<(f64, f64)>)> = table
        .series
        .iter()
        .map(|series| {
            let points = numbers.iter().enumerate();
            let points = points.filter_map(|(at, &x)| Some((x, table.median(&series.server, at)?)));
            (series.server.as_str(), points.collect())
        })
        .collect();
    let values = curves.iter().flat_map(|(_, points)| points).map(|&(_, y)| y).filter(|&y| y > 0.0);
    let least = values.clone().fold(f64::MAX, f64::min) / 1.5;
    let most = values.fold(f64::MIN_POSITIVE, f64::max) * 1.5;
    let end = numbers.iter().copied().fold(1.0, f64::max);

    let root = SVGBackend::new(path, (WIDTH, 380)).into_drawing_area();
    let title = format!("{}, {}", table.title, table.unit);
    root.draw(&Text::new(title, (10, 14), text(15, HPos::Left)))?;
    let (plot, legend) = root.split_horizontally(WIDTH.cast_signed() - NAME);
    for (row, (server, _)) in (1..).zip(&curves) {
        let (colour, y) = (colour(server), 20 + row * BAR);
        legend.draw(&PathElement::new([(0, y), (16, y)], colour.stroke_width(3)))?;
        legend.draw(&Text::new((*server).to_owned(), (24, y), text(13, HPos::Left)))?;
    }
    let mut chart = ChartBuilder::on(&plot);
    chart.margin(10).margin_top(2 * BAR).margin_right(30).x_label_area_size(40).y_label_area_size(60);
    if axis.logarithmic {
        let first = numbers.iter().copied().fold(f64::MAX, f64::min);
        let x = (first..end).log_scale().with_key_points(numbers.clone());
        draw_curves(&mut chart.build_cartesian_2d(x, (least..most).log_scale())?, axis, &curves)?;
    } else {
        draw_curves(&mut chart.build_cartesian_2d(0.0..end, 0.0..most)?, axis, &curves)?;
    }
    root.present()?;
    Ok(())
}

fn draw_curves<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    axis: &Axis,
    curves: &[(&str, Vec<(f64, f64)>)],
) -> Drawn
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(&axis.label)
        .axis_style(TEXT)
        .bold_line_style(TEXT.mix(0.3))
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 13).into_font().color(&TEXT))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| figure(*y))
        .draw()?;
    for (server, points) in curves {
        let colour = colour(server);
        let width = if *server == "steadfast" { 3 } else { 2 };
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(width)).point_size(3))?;
    }
    Ok(())
}
