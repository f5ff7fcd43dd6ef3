// What is drawn of a mask, and which masks are kept.

const SVG = "http://www.w3.org/2000/svg";

// As promerge_d2.visualization.overlay.color_of: hues step by the golden ratio.
export function color(index) {
  const hue = ((0.02 + index * 0.618034) % 1) * 360;
  return `hsl(${hue.toFixed(1)} 95% 56%)`;
}

export const colorOf = (mask) => color(mask.rank ?? mask.number);

// As Catalog.kept; scores are 32-bit floats.
export function isKept(mask, keep) {
  if (mask.state === "accepted") return true;
  if (mask.state !== "open") return false;
  if (mask.rank === null) return true;
  return mask.score >= Math.fround(keep.score) && (keep.best === null || mask.rank < keep.best);
}

export function drawMasks(svg, view, masks, { fill = 0.28, stroke = 1.5 } = {}) {
  svg.setAttribute("viewBox", `0 0 ${view[0]} ${view[1]}`);
  const large = [...masks].sort((a, b) => b.share - a.share); // below the small ones
  svg.replaceChildren(...large.map((mask) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", mask.path);
    path.setAttribute("fill", mask.color ?? colorOf(mask));
    path.setAttribute("fill-opacity", fill);
    path.setAttribute("fill-rule", "evenodd");
    path.setAttribute("stroke", mask.color ?? colorOf(mask));
    path.setAttribute("stroke-width", stroke);
    path.dataset.mask = mask.number;
    return path;
  }));
}
