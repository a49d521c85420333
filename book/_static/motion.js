/* The player of the moving figures: a canvas over the still picture, a button, a slider, a caption.
 *
 * The data are plain scripts beside this one (motion/NAME.js, made by book/motion/NAME.py), not fetched,
 * so that a page opened as a file plays too. Nothing moves before the reader asks for it; who prefers
 * reduced motion gets whole steps in place of movement. Without this script the still picture stays. */
(() => {
  "use strict";
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const ease = (u) => u * u * (3 - 2 * u);

  const unpack = (text, Type) =>
    new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

  /** Coordinates between two frames, in the picture's pixels. */
  function between(artist, t, units) {
    const k = Math.min(Math.floor(t), artist.frames - 1);
    const next = Math.min(k + 1, artist.frames - 1);
    const size = artist.data.length / artist.frames;
    const [a, b, u] = [k * size, next * size, t - k];
    return (i) => (artist.data[a + i] * (1 - u) + artist.data[b + i] * u) / units;
  }

  const paint = {
    points(g, artist, at) {
      artist.colours.forEach((colour, c) => {
        g.beginPath();
        artist.members[c].forEach((i) => {
          g.moveTo(at(2 * i) + artist.radius, at(2 * i + 1));
          g.arc(at(2 * i), at(2 * i + 1), artist.radius, 0, 7);
        });
        g.fillStyle = colour;
        g.fill();
      });
    },
    lines(g, artist, at) {
      g.strokeStyle = artist.colour;
      g.lineWidth = artist.width;
      g.beginPath();
      for (let line = 0; line < artist.count; line++)
        for (let j = 0; j < artist.length; j++) {
          const i = 2 * (line * artist.length + j);
          g[j ? "lineTo" : "moveTo"](at(i), at(i + 1));
        }
      g.stroke();
    },
    areas(g, artist, at) {
      for (let one = 0; one < artist.count; one++) {
        g.beginPath();
        for (let j = 0; j < artist.length; j++) {
          const i = 2 * (one * artist.length + j);
          g[j ? "lineTo" : "moveTo"](at(i), at(i + 1));
        }
        g.fillStyle = artist.colours[one % artist.colours.length];
        g.fill();
      }
    },
    cells(g, artist, _at, t) {
      const { rows, columns, gap = 0.4, box: [x, y, w, h] } = artist;
      const first = Math.round(t) * rows * columns;
      for (let i = 0; i < rows * columns; i++) {
        const colour = artist.colours[artist.data[first + i]];
        if (!colour) continue;
        const [left, top] = [i % columns, Math.floor(i / columns)];
        g.fillStyle = colour;
        g.fillRect(x + (left * w) / columns, y + (top * h) / rows, w / columns - gap, h / rows - gap);
      }
    },
  };

  function start(box) {
    const movie = (window.motionFigures || {})[box.dataset.motion];
    if (!movie) return;
    for (const artist of movie.artists) {
      artist.data = unpack(artist.data, artist.kind === "cells" ? Uint8Array : Int16Array);
      artist.frames = movie.frames;
      if (!artist.groups) continue;
      artist.members = artist.colours.map(() => []);
      unpack(artist.groups, Uint8Array).forEach((c, i) => artist.members[c].push(i));
    }
    const last = movie.stops.length - 1;
    const make = (tag, attributes) => {
      const element = document.createElement(tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      return element;
    };
    const canvas = make("canvas", { "aria-hidden": "true" }); // the still picture has the alt text
    const button = make("button", { type: "button", class: "motion-button" });
    const slider = make("input", {
      type: "range", min: 0, max: last, step: movie.smooth ? 0.01 : 1,
      "aria-label": `Step of the figure, 0 to ${last}`,
    });
    const caption = make("p", { class: "motion-step", "aria-live": "polite" });
    const controls = make("div", { class: "motion-controls" });
    controls.append(button, slider, caption);
    box.querySelector(".motion-stage").append(canvas);
    box.querySelector(".motion-card").after(controls);

    const background = make("img", { src: movie.background });
    let position = 0; // in stops: 2.5 is half-way from the third to the fourth
    let playing = null;

    function draw() {
      const scale = (canvas.clientWidth / movie.width) * (window.devicePixelRatio || 1);
      if (!scale || !background.complete) return;
      canvas.width = Math.round(movie.width * scale);
      canvas.height = Math.round(movie.height * scale);
      const g = canvas.getContext("2d");
      g.setTransform(scale, 0, 0, scale, 0, 0);
      g.imageSmoothingQuality = "high";
      g.drawImage(background, 0, 0, movie.width, movie.height);
      const k = Math.min(Math.floor(position), last - 1);
      const t = movie.stops[k] + (movie.stops[k + 1] - movie.stops[k]) * (position - k);
      g.lineJoin = "round";
      for (const artist of movie.artists) {
        if (artist.shown && !artist.shown[Math.ceil(t - 1e-6)]) continue;
        g.save();
        g.beginPath();
        g.rect(...artist.clip);
        g.clip();
        g.globalAlpha = artist.alpha;
        paint[artist.kind](g, artist, between(artist, t, movie.units), t);
        g.restore();
      }
    }

    function show(next) {
      position = Math.min(last, Math.max(0, next));
      const stop = Math.ceil(position - 1e-6); // on the way to a stop, its caption says what happens
      slider.value = position;
      slider.setAttribute("aria-valuetext", `${stop} of ${last}`);
      if (caption.textContent !== movie.captions[stop]) caption.textContent = movie.captions[stop];
      draw();
    }

    function pause() {
      cancelAnimationFrame(playing);
      playing = null;
      caption.setAttribute("aria-live", "polite");
      button.textContent = "▶";
      button.setAttribute("aria-label", "Play");
    }

    function play() {
      const from = position > last - 1e-3 ? 0 : position;
      caption.setAttribute("aria-live", "off"); // no screen reader is talked over
      button.textContent = "❚❚";
      button.setAttribute("aria-label", "Pause");
      let begin = null;
      const tick = (now) => {
        begin ??= now;
        const clock = from + (now - begin) / (1000 * movie.seconds);
        const [k, u] = [Math.floor(clock), clock % 1];
        if (clock >= last) { show(last); pause(); return; }
        const whole = calm.matches || !movie.smooth;
        show(whole ? k : Math.max(from, k + ease(Math.min(1, u / 0.85))));
        playing = requestAnimationFrame(tick);
      };
      playing = requestAnimationFrame(tick);
    }

    button.addEventListener("click", () => (playing === null ? play() : pause()));
    slider.addEventListener("input", () => { pause(); show(Number(slider.value)); });
    slider.addEventListener("keydown", (event) => {
      const forward = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!forward) return;
      event.preventDefault();
      pause();
      show(forward > 0 ? Math.floor(position + 1 + 1e-6) : Math.ceil(position - 1 - 1e-6));
    });
    background.addEventListener("load", draw);
    new ResizeObserver(draw).observe(canvas);
    pause();
    show(0);
  }

  // The scripts with the data come later in the page, and before this event.
  addEventListener("DOMContentLoaded", () => document.querySelectorAll("[data-motion]").forEach(start));
})();
