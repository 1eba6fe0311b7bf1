// What the tests of pages ask of one: functions that only look, put into the page by the browser.
({
  // shown text of every row's cell in a column, rows that are hidden left out
  column(table, place) {
    const rows = [...document.getElementById(table).tBodies].flatMap((body) => [...body.rows]).filter((row) => !row.hidden);
    return rows.map((row) => row.cells[place].textContent.trim());
  },
  // tables to sort: [id, place of a column of numbers]
  sortable() {
    return [...document.querySelectorAll("table.sortable[id]")]
      .filter((table) => table.tBodies.length === 1 && table.tBodies[0].rows.length > 2 && !table.closest("details:not([open])"))
      .map((table) => {
        const texts = (place) => new Set([...table.tBodies[0].rows].map((row) => row.cells[place].textContent.trim()));
        const heads = [...table.tHead.rows[0].cells];
        return [table.id, heads.findIndex((head, place) => head.classList.contains("n") && texts(place).size > 2)];
      })
      .filter(([, place]) => place >= 0);
  },
  // what is wider than the window, with everything opened
  wide() {
    const closed = document.querySelectorAll("details:not([open])");
    closed.forEach((details) => (details.open = true));
    const scrolling = document.scrollingElement;
    const guilty = [...document.querySelectorAll("body *")].filter(
      (each) => each.getBoundingClientRect().right > innerWidth + 0.5 && !each.closest(".scroll, pre, .hidden"),
    );
    const found = [scrolling.scrollWidth, innerWidth, guilty.slice(0, 3).map((found) => found.outerHTML.slice(0, 120))];
    closed.forEach((details) => (details.open = false));
    return found;
  },
  // texts whose contrast to what lies behind them is below `least` (WCAG 2.2, 1.4.3); letters in drawings too,
  // except those drawn in the page's own colour, which stand on bars
  faint(least) {
    const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (css) => {
      paint.clearRect(0, 0, 1, 1);
      paint.fillStyle = css;
      paint.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
      return [r, g, b, a / 255];
    };
    const over = (top, below) => [...[0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])), 1];
    const light = (colour) => {
      const [r, g, b] = colour.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
      const layers = [];
      for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
      return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    };
    const seen = new Map();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || element.closest("script, style, title, svg.pipeline, .hidden, .skip")) continue;
      if (!element.checkVisibility()) continue;
      const style = getComputedStyle(element);
      const own = rgba(element.closest("svg") ? style.fill : style.color);
      const back = behind(element.closest("svg") || element);
      if (element.closest("svg") && own.slice(0, 3).join() === back.slice(0, 3).join()) continue;
      for (let at = element; at; at = at.parentElement) own[3] *= Number(getComputedStyle(at).opacity);
      const [a, b] = [light(over(own, back)), light(back)];
      const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (contrast < least) seen.set(element.className || element.tagName, [walker.currentNode.data.trim().slice(0, 40), contrast]);
    }
    return [...seen];
  },
  // parts of a page that paper has no use for and are there, and what is folded away
  printed() {
    const controls = [...document.querySelectorAll("nav, .filter, .skip")].filter((found) => found.checkVisibility());
    const inside = [...document.querySelectorAll("details")].filter((details) => {
      const first = details.querySelector(":scope > :not(summary)");
      return first && !first.checkVisibility();
    });
    return [controls.length, inside.length];
  },
  // from now on, notes what the keyboard reaches and whether it shows
  watch() {
    const all = [...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")];
    const wanted = all.filter((found) => found.checkVisibility());
    window.reached = new Set();
    window.unseen = [];
    document.addEventListener("focusin", ({ target }) => {
      window.reached.add(target);
      const style = getComputedStyle(target);
      const shows = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1.5;
      if (!shows) window.unseen.push(target.outerHTML.slice(0, 80));
    });
    window.wanted = wanted;
    return wanted.length;
  },
  missed() {
    return [window.wanted.filter((found) => !window.reached.has(found)).map((found) => found.outerHTML.slice(0, 80)), window.unseen];
  },
  // drawings whose values cannot be pointed at: [label, how many values are there]
  mute() {
    return [...document.querySelectorAll("figure svg, svg.pipeline")].flatMap((drawing) => {
      const titled = [...drawing.querySelectorAll(":scope title")].filter((title) => /\d/.test(title.textContent));
      drawing.scrollIntoView({ block: "center", behavior: "instant" });
      const hit = titled.slice(0, 40).some((title) => {
        const shape = title.parentElement;
        const box = shape.getBoundingClientRect();
        const places = [[box.x + box.width / 2, box.y + box.height / 2]];
        const path = shape.querySelector("path");
        if (path) {
          const middle = path.getPointAtLength(path.getTotalLength() * 0.5).matrixTransform(path.getScreenCTM());
          places.push([middle.x, middle.y]);
        }
        return places.some(([x, y]) => shape.contains(document.elementFromPoint(x, y)));
      });
      return hit || drawing.closest("details:not([open])") ? [] : [[drawing.getAttribute("aria-label"), titled.length]];
    });
  },
});
