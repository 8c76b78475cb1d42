// Time of the replay = recorded seconds; the script only decides what is visible at that time.
document.querySelectorAll('.rc:not([data-on])').forEach(function (root) {
  root.dataset.on = '1';
  var q = function (selector) { return root.querySelector(selector); };
  var data = JSON.parse(root.dataset.race);
  var sides = ['fast', 'plain'].map(function (name) {
    var pane = q('.pane.' + name);
    return {
      ends: data[name].ends,
      last: data[name].last,
      text: pane.querySelector('.tx'),
      spans: pane.querySelectorAll('.tx .tk'),
      count: pane.querySelector('.count'),
      rate: pane.querySelector('.rate'),
      run: q('.lane.' + name + ' .run'),
      at: q('.lane.' + name + ' .at'),
      shown: -1
    };
  });
  var end = Math.max(sides[0].last, sides[1].last), now = end, playing = false, before = 0;
  var button = q('.play'), slider = q('.speed'), label = q('output'), clock = q('.clock');
  function speed() { return Math.pow(10, +slider.value); }
  function rateOf(n, t) { return t > 0 ? Math.round(n / t).toLocaleString('en-US') : '0'; }
  function show(s, n) {
    var newest = n ? s.ends[n - 1] : -1;
    for (var i = 0; i < s.spans.length; i++) {
      s.spans[i].classList.toggle('f', i >= n);
      s.spans[i].classList.toggle('new', i < n && n < s.ends.length && s.ends[i] === newest);
    }
    s.shown = n;
    s.count.textContent = n;
    s.run.style.width = 100 * n / Math.max(s.ends.length, 1) + '%';
    var span = s.spans[Math.max(n - 1, 0)];
    if (!span) return;
    var y = span.offsetTop - s.text.offsetTop;
    s.text.scrollTop = n === 0 ? 0 : Math.max(0, y - s.text.clientHeight + 60);
  }
  function draw() {
    sides.forEach(function (s) {
      var n = s.ends.length;
      while (n && s.ends[n - 1] > now + 1e-9) n--;
      if (n !== s.shown) show(s, n);
      s.rate.textContent = rateOf(n, Math.min(now, s.last));
      s.at.textContent = now >= s.last - 1e-9 ? s.last.toFixed(3) + ' s' : '';
    });
    clock.textContent = now.toFixed(3) + ' s';
    q('.result').style.visibility = now >= end ? 'visible' : 'hidden';
    button.textContent = playing ? 'Pause' : 'Play';
  }
  function frame(time) {
    if (!playing) return;
    now = Math.min(end, now + (time - before) / 1000 * speed());
    before = time;
    if (now >= end) playing = false;
    draw();
    if (playing) requestAnimationFrame(frame);
  }
  function play() {
    playing = true;
    draw();
    requestAnimationFrame(function (time) { before = time; frame(time); });
  }
  function relabel() { label.textContent = speed().toFixed(speed() < 0.1 ? 3 : 2) + '×'; }
  button.onclick = function () {
    if (playing) {
      playing = false;
      draw();
      return;
    }
    if (now >= end) now = 0;
    play();
  };
  q('.again').onclick = function () {
    now = 0;
    if (playing) draw(); else play();
  };
  slider.oninput = relabel;
  q('.bar').hidden = false;
  relabel();
  draw();
});
