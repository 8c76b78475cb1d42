// The browser's own tooltips are slow and small: the same words at once, beside the token.
document.querySelectorAll('.sj:not([data-tip])').forEach(function (root) {
  root.dataset.tip = '1';
  var tip = document.createElement('div');
  tip.className = 'tip';
  tip.hidden = true;
  root.appendChild(tip);
  root.addEventListener('mouseover', function (event) {
    var token = event.target.closest('.tk');
    if (!token || !root.contains(token) || !(token.title || token.dataset.title)) {
      tip.hidden = true;
      return;
    }
    if (token.title) {
      token.dataset.title = token.title;
      token.removeAttribute('title');
    }
    tip.textContent = token.dataset.title;
    tip.hidden = false;
    var box = token.getClientRects()[0], top = box.bottom + 8;
    if (top + tip.offsetHeight > innerHeight) top = box.top - tip.offsetHeight - 8;
    tip.style.top = Math.max(4, top) + 'px';
    tip.style.left = Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 12)) + 'px';
  });
  root.addEventListener('mouseleave', function () { tip.hidden = true; });
});
