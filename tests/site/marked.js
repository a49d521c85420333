// Whether what has the focus is marked.
() => { const s = getComputedStyle(document.activeElement);
  return s.outlineStyle != 'none' || s.boxShadow != 'none'; }
