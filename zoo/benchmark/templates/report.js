'use strict';
// Sorts tables, switches pictures, filters and shows utterances. All texts are set with textContent, none with innerHTML.
(() => {
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

  // ---- sorting: a heading's button; cells say their value in data-v, an empty one stays last
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  for (const table of all('table.sortable')) {
    const heads = all('thead th', table), body = table.tBodies[0];
    for (const head of heads) {
      const button = head.querySelector('button');
      if (!button) continue;
      button.addEventListener('click', () => {
        const now = head.getAttribute('aria-sort');
        const other = head.dataset.first === 'ascending' ? 'descending' : 'ascending';
        const direction = now === head.dataset.first ? other : head.dataset.first;
        const value = (row) => row.cells[head.cellIndex].dataset.v;
        const sign = direction === 'ascending' ? 1 : -1;
        const rows = [...body.rows].sort((a, b) => {
          const x = value(a), y = value(b);
          if (x === '' || y === '') return (x === '') - (y === '');
          return sign * compare(x, y);
        });
        for (const one of heads) if (one.hasAttribute('aria-sort')) one.setAttribute('aria-sort', 'none');
        head.setAttribute('aria-sort', direction);
        body.append(...rows);
      });
    }
  }

  // ---- which cost is drawn
  const show = (cost) => all('figure.picture').forEach((figure) => { figure.hidden = figure.dataset.cost !== cost; });
  document.getElementById('cost-choice').addEventListener('change', (event) => show(event.target.value));
  show(document.querySelector('#cost-choice input:checked').value); // a reload keeps the choice

  // ---- where the reader is
  const links = all('nav a');
  const sections = links.map((link) => document.querySelector(link.getAttribute('href')));
  const follow = () => {
    const line = window.innerHeight * 0.3;
    let at = sections.findLastIndex((section) => section.getBoundingClientRect().top <= line);
    if (window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 4) at = sections.length - 1;
    links.forEach((link, i) => { i === at ? link.setAttribute('aria-current', 'true') : link.removeAttribute('aria-current'); });
  };
  window.addEventListener('scroll', follow, { passive: true });
  follow();
  window.addEventListener('beforeprint', () => all('details').forEach((one) => { one.open = true; }));

  // ---- single utterances
  const data = document.getElementById('data');
  if (!data) return;
  const { systems, utterances } = JSON.parse(data.textContent);
  const PAGE = 25;
  const field = (id) => document.getElementById(id);
  const search = field('search'), truth = field('truth'), view = field('view'), cards = field('cards');
  const put = (root, selector, text) => { root.querySelector(selector).textContent = text; };
  const unhide = (root, selector) => { const one = root.querySelector(selector); one.removeAttribute('hidden'); return one; };
  const answers = (one) => systems.map((s) => one.systems[s.name]).filter((a) => a !== undefined);
  const haystack = utterances.map((one) =>
    [one.id, one.speaker, one.text, ...Object.values(one.descriptions)].join('\n').toLowerCase());

  const views = {
    all: () => true,
    disagree: (one) => new Set(answers(one).map((a) => a.predicted)).size > 1,
    'all-wrong': (one) => answers(one).length > 0 && answers(one).every((a) => a.predicted !== one.label),
  };
  const wrong = (index) => (one) => {
    const answer = one.systems[systems[index].name];
    return answer !== undefined && answer.predicted !== one.label;
  };

  const answer = (system, one) => {
    const item = field('answer').content.firstElementChild.cloneNode(true);
    const said = one.systems[system.name];
    put(item, '.who', system.what);
    if (said === undefined) {
      item.className = 'absent';
      put(item, '.mark', '·');
      put(item, '.label', 'no answer stored');
      return item;
    }
    const kind = said.predicted === null ? 'unparsed' : said.predicted === one.label ? 'right' : 'wrong';
    item.className = kind;
    put(item, '.mark', { right: '✓', wrong: '✗', unparsed: '∅' }[kind]);
    put(item, '.label', said.predicted === null ? 'no label' : said.predicted);
    const spoken = document.createElement('span');
    spoken.className = 'hidden';
    spoken.textContent = ` (${kind})`;
    item.querySelector('.label').append(spoken);
    if (said.score !== null) put(item, '.score', said.score.toFixed(2));
    if (said.said !== null && said.said.trim() !== said.predicted) put(unhide(item, '.said'), 'q', said.said);
    if (said.decision !== null) {
      put(item, '.decision', { keep: 'kept the descriptions', discard: 'left the descriptions out' }[said.decision]);
      unhide(item, '.decision');
    }
    if (said.why !== null) put(unhide(item, 'details'), 'p', said.why);
    return item;
  };

  const card = (one) => {
    const item = field('card').content.firstElementChild.cloneNode(true);
    if (one.face !== null) {
      const face = unhide(item, '.face');
      face.src = one.face;
      face.alt = `face of ${one.speaker || 'the speaker'}`;
    } else unhide(item, '.no-face');
    if (one.voice !== null && one.voice.length) {
      const step = 120 / one.voice.length;
      const bars = one.voice.map((v, i) => {
        const x = ((i + 0.5) * step).toFixed(1), half = Math.max(0.6, 19 * Math.min(1, v));
        return `M${x} ${(20 - half).toFixed(1)}V${(20 + half).toFixed(1)}`;
      });
      unhide(item, '.voice').querySelector('path').setAttribute('d', bars.join(''));
    } else unhide(item, '.no-voice');
    put(item, '.id', one.id);
    for (const [speaker, text] of one.history) {
      const turn = document.createElement('li'), name = document.createElement('b');
      name.textContent = speaker;
      turn.append(name, ` ${text}`);
      item.querySelector('.history').append(turn);
    }
    put(item, '.speaker', one.speaker);
    put(item, '.turn q', one.text);
    put(item, '.true b', one.label);
    for (const [kind, text] of Object.entries(one.descriptions)) {
      const name = document.createElement('dt'), value = document.createElement('dd');
      name.textContent = kind;
      value.textContent = text;
      item.querySelector('.descriptions').append(name, value);
    }
    item.querySelector('.answers').append(...systems.map((system) => answer(system, one)));
    return item;
  };

  let page = 0;
  const draw = () => {
    const words = search.value.trim().toLowerCase();
    const keep = view.value.startsWith('wrong:') ? wrong(Number(view.value.slice(6))) : views[view.value];
    const found = utterances.filter((one, i) =>
      (!words || haystack[i].includes(words)) && (!truth.value || one.label === truth.value) && keep(one));
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    cards.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(card));
    field('found').textContent = found.length === utterances.length
      ? `${found.length} utterances` : `${found.length} of ${utterances.length} utterances`;
    for (const pager of all('.pager')) {
      put(pager, '.page', `${page + 1} / ${pages}`);
      pager.querySelector('.previous').disabled = page === 0;
      pager.querySelector('.next').disabled = page === pages - 1;
    }
  };
  const turn = (by) => (event) => {
    page += by;
    draw();
    if (event.currentTarget.closest('.bottom')) field('utterances').scrollIntoView();
  };
  const restart = () => { page = 0; draw(); };
  field('filters').addEventListener('submit', (event) => event.preventDefault());
  for (const one of [search, truth, view]) one.addEventListener('input', restart);
  for (const button of all('.previous')) button.addEventListener('click', turn(-1));
  for (const button of all('.next')) button.addEventListener('click', turn(1));
  draw();
})();
