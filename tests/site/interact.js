// Fifty random interactions with a live figure; returns what it shows that is not a number.
async (seed) => {
  let state = seed;
  const random = (n) => {
    state = (state * 48271) % 2147483647;
    return state % n;
  };
  const stage = document.querySelector(".live-stage");
  const wrong = new Set();
  for (let i = 0; i < 50; i++) {
    const controls = [...stage.querySelectorAll("button, select, input, [tabindex='0']")].filter((e) => e.checkVisibility());
    const control = controls[random(controls.length)];
    if (control.tagName === "SELECT") {
      control.selectedIndex = random(control.options.length);
      control.dispatchEvent(new Event("change", { bubbles: true }));
    } else if (control.tagName === "INPUT") {
      const [low, high] = [Number(control.min), Number(control.max)];
      control.value = [low, high, low + ((high - low) * random(1000)) / 1000][random(3)];
      control.dispatchEvent(new Event("input", { bubbles: true }));
      control.dispatchEvent(new Event("change", { bubbles: true }));
    } else if (control.tagName === "BUTTON") control.click();
    else {
      const key = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", " "][random(5)];
      control.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    }
    await new Promise((done) => setTimeout(done, 5));
    const text = stage.textContent;
    for (const word of ["NaN", "undefined", "[object", "Infinity"]) if (text.includes(word)) wrong.add(`${word}: ${text}`);
    for (const path of stage.querySelectorAll("path")) if (/NaN|undefined/.test(path.getAttribute("d"))) wrong.add("a path");
  }
  return [...wrong];
}
