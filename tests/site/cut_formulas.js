// Displayed formulas that are wider than their column, and so have to be pushed to be read; folded ones too.
() => document.querySelectorAll('details').forEach(e => { e.open = true; })
  ?? [...document.querySelectorAll('mjx-container[display="true"]')]
  .filter(e => e.querySelector('svg, mjx-math').getBoundingClientRect().width
    > e.closest('div.math').getBoundingClientRect().width + 1)
  .map(e => e.closest('div.math').id || e.innerText.replace(/\s+/g, ' ').slice(0, 80))
