// Draws the page from the JSON in #data. Text from the trace goes in as text nodes only.
'use strict';
(function () {
  const data = JSON.parse(document.getElementById('data').textContent);
  const charts = [];
  const palette = ['#2563a8', '#d9822b', '#1b7f4d', '#8a4fb5', '#b3362b', '#12859c', '#7a6a1d', '#c2508a', '#58677a', '#4c9a2a'];
  const colors = { cpu: '#2563a8', ssd: '#e0a030', remote: '#8a4fb5', reachable: '#58677a', late: '#b3362b' };

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === 'class') element.className = value; else element.setAttribute(name, value);
    }
    for (const child of children) element.append(child);
    return element;
  }
  const section = (id) => document.getElementById(id);
  const number = (value) => Number(value).toLocaleString('en-US');
  const percent = (share) => (100 * share).toFixed(1) + ' %';
  function short(value) {
    for (const [unit, name] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) {
      if (value >= unit) return +(value / unit).toPrecision(3) + name;
    }
    return String(+(+value).toPrecision(3));
  }
  function duration(ms) {
    if (ms === 0) return '0';
    if (ms < 1e-3) return +(ms * 1e6).toPrecision(2) + ' ns';
    if (ms < 1) return +(ms * 1e3).toPrecision(3) + ' us';
    if (ms < 1e3) return +ms.toPrecision(3) + ' ms';
    if (ms < 120e3) return +(ms / 1e3).toPrecision(3) + ' s';
    return ms < 7200e3 ? +(ms / 60e3).toPrecision(3) + ' min' : +(ms / 3600e3).toPrecision(3) + ' h';
  }
  const says = (text) => make('p', { class: 'none' }, text);
  const muted = (text) => make('p', { class: 'muted' }, text);

  function table(head, rows, late) {
    const body = make('tbody', {});
    rows.forEach((row, r) => body.append(make('tr', {}, ...row.map((cell, c) =>
      make('td', late && late(r, c) ? { class: 'late' } : {}, String(cell))))));
    return make('div', { class: 'scroll' }, make('table', {},
      make('thead', {}, make('tr', {}, ...head.map((text) => make('th', { scope: 'col' }, text)))), body));
  }

  function chart(parent, label, config, small) {
    const canvas = make('canvas', { role: 'img', 'aria-label': label });
    parent.append(make('div', { class: small ? 'chart small' : 'chart' }, canvas));
    config.options = Object.assign({ responsive: true, maintainAspectRatio: false, animation: false }, config.options);
    config.options.plugins = Object.assign({ legend: { labels: { boxWidth: 12, usePointStyle: false } } }, config.options.plugins);
    const drawn = new Chart(canvas, config);
    charts.push(drawn);
    canvas.dataset.drawn = String(drawn.data.datasets.reduce((sum, set) => sum + set.data.length, 0));
  }
  Chart.defaults.font.family = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
  Chart.defaults.color = '#1d2530';
  Chart.defaults.borderColor = '#e6eaee';
  const title = (text) => ({ display: true, text, color: '#5d6876' });
  const percentAxis = (text, extra) => Object.assign({ beginAtZero: true, suggestedMax: 10, title: title(text),
    ticks: { callback: (value) => value + ' %' } }, extra);

  function tile(name, value, note, badge) {
    const box = make('div', { class: 'tile' }, make('div', { class: 'name' }, name), make('div', { class: 'value' }, value));
    if (badge) box.append(make('span', { class: 'badge ' + badge.split(' ')[0] }, badge));
    if (note) box.append(make('div', { class: 'note' }, note));
    return box;
  }

  function tiles() {
    const box = section('tiles'), trace = data.trace, shape = data.prefixes, total = data.total;
    if (data.measured) box.append(tile('Hit rate', percent(data.hit_rate), '', data.verdict));
    box.append(tile('Infinite cache', trace.has_blocks ? percent(data.reachable_rate) : 'not known',
      trace.has_blocks ? 'what the workload can reach' : 'recorded without hashes', data.measured ? '' : data.verdict));
    if (data.measured) {
      box.append(tile('By tier', percent(total.hit_rate_cpu), 'in memory; ' + percent(total.hit_rate_ssd) + ' on SSD'));
    }
    box.append(tile('Prompt tokens', short(total.prompt_tokens), number(total.requests) + ' lookups'));
    box.append(tile('Different blocks', short(shape.unique_blocks), percent(shape.never_read_share) + ' never read again'));
    box.append(tile('Time', duration(1e3 * trace.duration_s), 'blocks of ' + trace.tokens_per_block + ' tokens'));
  }

  function advice() {
    const box = section('advice');
    if (data.advice.length === 0) return box.append(says('Nothing stands out.'));
    const list = make('ol', { class: 'steps' });
    for (const step of data.advice) {
      list.append(make('li', {}, make('b', {}, step.title), make('p', {}, step.action), make('p', { class: 'why' }, step.evidence)));
    }
    box.append(list);
  }

  function overTime() {
    const box = section('over-time'), rows = data.over_time.filter((row) => row.prompt_tokens > 0);
    if (rows.length === 0) return box.append(says('No lookups with prompt tokens in this trace.'));
    box.append(muted('Share of prompt tokens in each ' + duration(1e3 * data.bucket_s) + (data.measured
      ? ', by the tier they were found in; the dashed line is what an infinite cache would have found.'
      : ' that an infinite cache would have found. What was really found is not in this format.')));
    const at = (key) => rows.map((row) => ({ x: row.time_s, y: 100 * row[key] }));
    const tier = (label, key, color) => ({ label, data: at(key), backgroundColor: color + 'b0', borderColor: color,
      fill: key === 'hit_rate_cpu' ? 'origin' : '-1', stack: 'tiers', pointRadius: rows.length < 3 ? 3 : 0, borderWidth: 1 });
    const sets = [];
    if (data.measured) {
      sets.push(tier('memory', 'hit_rate_cpu', colors.cpu));
      for (const name of ['ssd', 'remote']) {
        if (data.total['hit_rate_' + name] > 0) sets.push(tier(name === 'ssd' ? 'SSD' : name, 'hit_rate_' + name, colors[name]));
      }
    }
    if (data.trace.has_blocks) {
      sets.push({ label: 'infinite cache', data: at('reachable_rate'), borderColor: colors.reachable, borderDash: [6, 4],
        backgroundColor: colors.reachable, stack: 'reachable', pointRadius: rows.length < 3 ? 3 : 0, borderWidth: 2 });
    }
    if (sets.length === 0) return box.append(says('Nothing was measured and no hashes were recorded.'));
    chart(box, 'Hit rate over time', { type: 'line', data: { datasets: sets }, options: {
      interaction: { mode: 'index', intersect: false },
      scales: { x: { type: 'linear', min: 0, max: Math.max(rows[rows.length - 1].time_s, data.bucket_s), title: title('time since the start'), ticks: { callback: (s) => duration(1e3 * s) } },
        y: percentAxis('of prompt tokens', { stacked: true, max: 100 }) } } });
  }

  function curveSets() {
    const sets = [], byPolicy = new Map();
    for (const cell of data.cells) {
      if (cell.cpu_blocks === 'inf') continue;
      if (!byPolicy.has(cell.policy)) byPolicy.set(cell.policy, []);
      byPolicy.get(cell.policy).push({ x: cell.cpu_blocks, y: 100 * cell.hit_rate });
    }
    byPolicy.delete('lru');
    const seen = data.curve.findIndex(([, rate]) => rate >= 0.01 * data.reachable_rate);  // left of it all lines lie on the axis
    sets.push({ label: 'lru (exact)', data: data.curve.slice(Math.max(0, seen - 1)).map(([x, y]) => ({ x, y: 100 * y })), borderColor: palette[0],
      backgroundColor: palette[0], pointRadius: 0, borderWidth: 2.5 });
    let next = 1;
    for (const [policy, points] of byPolicy) {
      points.sort((a, b) => a.x - b.x);
      const best = policy === 'min', color = best ? '#1d2530' : palette[next++ % palette.length];
      const isDefault = policy === 'default' || policy === data.default_policy;
      sets.push({ label: best ? 'min (the ceiling)' : isDefault ? policy + ' (the default)' : policy, data: points, borderColor: color,
        backgroundColor: color, borderDash: best ? [2, 3] : [], borderWidth: best || isDefault ? 2.5 : 1.5, pointRadius: 2.5 });
    }
    const xs = sets.flatMap((set) => set.data.map((point) => point.x));
    const top = 100 * data.reachable_rate;
    sets.push({ label: 'infinite cache', data: [{ x: Math.min(...xs), y: top }, { x: Math.max(...xs), y: top }],
      borderColor: colors.reachable, backgroundColor: colors.reachable, borderDash: [8, 5], pointRadius: 0, borderWidth: 1.5 });
    return sets;
  }

  function capacity() {
    const box = section('capacity');
    if (data.curve.length === 0) {
      return box.append(says(data.no_curve ? 'No curve: ' + data.no_curve : 'No full block in this trace: nothing can be cached.'));
    }
    box.append(muted('What a cache of one tier would find. The dotted line, min, knows the future: no policy can be above it, and nothing above an infinite cache.'));
    const sets = curveSets(), first = Math.min(...sets.flatMap((set) => set.data.map((point) => point.x)));
    chart(box, 'Hit rate by capacity and policy', { type: 'line', data: { datasets: sets }, options: {
      interaction: { mode: 'nearest', intersect: false },
      scales: { x: { type: 'logarithmic', min: first, title: title('blocks of ' + data.trace.tokens_per_block + ' tokens'),
        ticks: { autoSkip: true, maxRotation: 0, callback: (value) => /^[125]/.test(String(value)) ? short(value) : '' } },
        y: percentAxis('hit rate') } } });
    if (data.cells.length === 0) return;
    const sizes = [...new Set(data.cells.map((cell) => cell.cpu_blocks))];
    const policies = [...new Set(data.cells.map((cell) => cell.policy))];
    const rate = (policy, size) => {
      const cell = data.cells.find((c) => c.policy === policy && c.cpu_blocks === size);
      return cell ? (100 * cell.hit_rate).toFixed(1) : '';
    };
    box.append(table(['hit rate in %, blocks', ...sizes.map((size) => number(size))],
      policies.map((policy) => [policy, ...sizes.map((size) => rate(policy, size))])));
  }

  function latency() {
    const box = section('latency'), legs = data.legs.filter((leg) => leg.operations > 0);
    if (legs.length === 0) {
      return box.append(says(data.measured ? 'Nothing was moved.' : 'This format records no transfers.'));
    }
    box.append(muted('Each operation counts with its time divided by its blocks; red is above the target. Percentiles are within 1.6 %.'));
    const grid = make('div', { class: 'grid' });
    for (const leg of legs) {
      const cell = make('div', {}, make('h3', {}, leg.title + ' (target ' + duration(leg.target_ms) + ')'));
      grid.append(cell);
      chart(cell, 'Latency ' + leg.title, { type: 'bar', data: { labels: leg.histogram.map((bar) => duration(bar[0])),
        datasets: [{ label: 'operations', data: leg.histogram.map((bar) => bar[2]), categoryPercentage: 1, barPercentage: 0.92,
          backgroundColor: leg.histogram.map((bar) => bar[0] >= leg.target_ms ? colors.late : colors.cpu) }] },
      options: { plugins: { legend: { display: false } }, scales: { x: { title: title('time a block'), grid: { display: false },
        ticks: { maxRotation: 0, autoSkipPadding: 12 } }, y: { beginAtZero: true, title: title('operations'), ticks: { precision: 0 } } } } }, true);
    }
    box.append(grid);
    const rows = legs.map((leg) => [leg.title, number(leg.operations), ...['p50_ms', 'p90_ms', 'p99_ms', 'max_ms'].map((key) =>
      duration(leg.per_block[key])), duration(leg.target_ms), percent(leg.late_operations / leg.operations), short(leg.bytes_per_s) + 'B/s']);
    box.append(table(['a block', 'operations', 'p50', 'p90', 'p99', 'max', 'target', 'late', 'rate'], rows,
      (r, c) => c >= 2 && c <= 5 && legs[r].per_block[['p50_ms', 'p90_ms', 'p99_ms', 'max_ms'][c - 2]] > legs[r].target_ms));
  }

  function where() {
    const box = section('where'), spent = data.time_spent;
    const parts = [['lookup', spent.match_ms, '#58677a'], ['waiting', spent.queue_ms, '#d9822b'], ['load to GPU', spent.load_ms, '#2563a8'],
      ['read from SSD', spent.ssd_ms, '#e0a030'], ['store from GPU', spent.store_ms, '#1b7f4d']];
    const sum = parts.reduce((all, part) => all + part[1], 0);
    if (sum === 0) return box.append(says('No times in this trace.'));
    const stack = make('div', { class: 'stack', role: 'img', 'aria-label': 'Shares of time' });
    const legend = make('div', { class: 'legend' });
    for (const [name, ms, color] of parts) {
      const piece = make('i', {});
      piece.style.width = (100 * ms / sum) + '%';
      piece.style.background = color;
      stack.append(piece);
      const entry = make('span', {}, name + ' ' + percent(ms / sum) + ' (' + duration(ms) + ')');
      entry.style.setProperty('--c', color);
      legend.append(entry);
    }
    box.append(stack, legend);
    if (data.slowest.length === 0) return;
    box.append(make('h3', { style: 'margin-top:16px' }, 'Slowest operations'));
    box.append(table(['record', 'at', 'namespace', 'tokens', 'total', 'lookup', 'waiting', 'load', 'SSD', 'store'],
      data.slowest.map((slow) => [slow.kind + ' #' + slow.record, duration(1e3 * slow.time_s), slow.namespace, number(slow.prompt_tokens),
        duration(slow.total_ms), duration(slow.match_ms), duration(slow.queue_ms), duration(slow.load_ms), duration(slow.ssd_ms),
        duration(slow.store_ms)])));
  }

  function bars(parent, heading, text, label, labels, values, unit) {
    const cell = make('div', {}, make('h3', {}, heading), muted(text));
    parent.append(cell);
    chart(cell, heading, { type: 'bar', data: { labels, datasets: [{ label, data: values, backgroundColor: colors.cpu,
      categoryPercentage: 1, barPercentage: 0.92 }] }, options: { plugins: { legend: { display: false } }, scales: {
      x: { title: title(unit), grid: { display: false }, ticks: { maxRotation: 0, autoSkipPadding: 12 } },
      y: { beginAtZero: true, title: title(label), ticks: { callback: (value) => short(value) } } } } }, true);
  }

  function reuse() {
    const box = section('reuse'), shape = data.prefixes;
    if (data.reuse_distance_blocks.length === 0 && shape.prompt_blocks.length === 0) {
      return box.append(says('No block is asked for twice.'));
    }
    if (data.reuse_gap.count > 0) {
      box.append(muted('Until a block is asked for again: p50 ' + duration(data.reuse_gap.p50_ms) + ', p90 ' + duration(data.reuse_gap.p90_ms) +
        ', longest ' + duration(data.reuse_gap.max_ms) + '.'));
    }
    const grid = make('div', { class: 'grid' });
    box.append(grid);
    if (data.reuse_distance_blocks.length === 0) {
      grid.append(make('div', {}, says('No block is asked for twice.')));
    } else {
      bars(grid, 'Reuse distance', 'How large an LRU cache has to be for a hit.', 'block hits',
        data.reuse_distance_blocks.map((row) => short(row[0])), data.reuse_distance_blocks.map((row) => row[1]), 'up to so many blocks');
    }
    if (shape.prompt_blocks.length > 0) {
      bars(grid, 'Prompt lengths', 'Full blocks of each lookup: p50 ' + number(shape.prompt_blocks_p50) + ', p90 ' +
        number(shape.prompt_blocks_p90) + '.', 'lookups', shape.prompt_blocks.map((row) => short(row[0]) + '+'),
      shape.prompt_blocks.map((row) => row[2]), 'blocks');
    }
  }

  function treeNode(nodes, children, index, most) {
    const node = nodes[index], fill = make('i', {});
    fill.style.width = (100 * node.saved_tokens / most) + '%';
    const item = make('li', {}, make('div', { class: 'node' },
      make('span', {}, make('code', {}, node.id), make('span', { class: 'muted' }, ' ' + number(node.blocks) + (node.blocks === 1 ? ' block' : ' blocks'))),
      make('div', { class: 'bar' }, fill), make('span', { class: 'right' }, number(node.uses)),
      make('span', { class: 'right' }, short(node.saved_tokens) + (node.branches ? ', ' + node.branches + (node.branches === 1 ? ' branch' : ' branches') : ''))));
    if (children[index].length > 0) {
      item.append(make('ul', {}, ...children[index].map((child) => treeNode(nodes, children, child, most))));
    }
    return item;
  }

  function prefixes() {
    const box = section('prefixes'), nodes = data.prefixes.tree;
    if (nodes.length === 0) return box.append(says('No two prompts begin with the same full block.'));
    box.append(muted('Runs of blocks that prompts begin with, as a tree, named by the last block. The first ' + data.prefixes.top_prefixes.length +
      ' save ' + percent(data.prefixes.top_prefixes_share) + ' of all tokens that can be found.' +
      (data.prefixes.sampled_one_in > 1 ? ' From one block in ' + data.prefixes.sampled_one_in + '.' : '')));
    const children = nodes.map(() => []), roots = [];
    nodes.forEach((node, index) => (node.parent < 0 ? roots : children[node.parent]).push(index));
    const order = (list) => list.sort((a, b) => nodes[b].saved_tokens - nodes[a].saved_tokens);
    children.forEach(order);
    const most = Math.max(...nodes.map((node) => node.saved_tokens), 1);
    box.append(make('div', { class: 'node head' }, make('span', {}, 'prefix'), make('span', {}, 'saved'),
      make('span', { class: 'right' }, 'found'), make('span', { class: 'right' }, 'tokens saved')));
    box.append(make('ul', { class: 'tree' }, ...order(roots).map((root) => treeNode(nodes, children, root, most))));
  }

  function namespaces() {
    const box = section('namespaces'), rows = data.namespaces.filter((row) => row.requests > 0);
    if (rows.length < 2) return box.remove();
    rows.sort((a, b) => b.prompt_tokens - a.prompt_tokens);
    box.append(table(['namespace', 'lookups', 'prompt tokens', 'hit rate', 'infinite cache'], rows.slice(0, 30).map((row) => [row.namespace || '-',
      number(row.requests), number(row.prompt_tokens), data.measured ? percent(row.hit_rate) : '-',
      data.trace.has_blocks ? percent(row.reachable_rate) : '-'])));
  }

  function about() {
    const box = section('about'), trace = data.trace;
    const rows = [['files', data.files.join(', ')], ['format', trace.format], ['lines', number(trace.lines)],
      ['bad lines', number(trace.bad_lines)], ['records dropped when written', number(trace.dropped_records)]];
    if (data.measured) {
      rows.push(['blocks stored / already there / refused', [data.puts.accepted_blocks, data.puts.held_blocks, data.puts.refused_blocks].map(number).join(' / ')]);
      rows.push(['blocks evicted from memory / SSD', number(data.evicted_blocks.cpu) + ' / ' + number(data.evicted_blocks.ssd)]);
      rows.push(['failed / refused operations', number(data.results.failed) + ' / ' + number(data.results.refused)]);
    }
    box.append(table(['', ''], rows));
    if (trace.first_bad_lines.length > 0) {
      box.append(make('pre', {}, trace.first_bad_lines.map((bad) => bad.file + ':' + bad.line + ': ' + bad.reason).join('\n')));
    }
  }

  const words = data.trace;
  section('source').textContent = data.files.join(', ') + ': ' + words.format + ', ' + number(words.records) + ' records';
  for (const part of [tiles, advice, overTime, capacity, latency, where, reuse, prefixes, namespaces, about]) part();
  window.addEventListener('beforeprint', () => charts.forEach((drawn) => drawn.resize()));
  window.addEventListener('afterprint', () => charts.forEach((drawn) => drawn.resize()));
  document.body.dataset.charts = String(charts.length);
  document.body.dataset.wide = document.documentElement.scrollWidth > window.innerWidth ? 'yes' : 'no';
  document.body.dataset.ready = 'yes';
})();
