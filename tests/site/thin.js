// axe takes half a minute for a page with thousands of words of code and parts of formulas. The contrast of
// all these is in CONTRAST; axe gets one word of each class, three formulas, and looks at the colours of one
// element of each kind.
() => {
  const name = e => e ? e.tagName + '.' + e.className : '', words = new Set(), kinds = new Set();
  for (const e of document.querySelectorAll(':is(pre, dt.sig) :is(span, em, a.name)')) {
    if (words.has(e.className)) e.replaceWith(...e.childNodes);
    else words.add(e.className);
  }
  [...document.querySelectorAll('mjx-container')].slice(3).forEach(e => e.replaceWith('x'));
  document.body.normalize();
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(c => c.nodeType == Node.TEXT_NODE && c.data.trim())) continue;
    const around = [e, e.parentElement, e.parentElement.parentElement, e.closest('tr, .admonition, nav')];
    const kind = around.map(name) + getComputedStyle(e).color;
    if (!kinds.has(kind)) { kinds.add(kind); e.dataset.kind = kinds.size; }
  }
  return kinds.size; }
