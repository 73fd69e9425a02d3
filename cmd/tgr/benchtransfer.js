// Saves a cache in chunks of 32 MiB, 4 at a time, and fetches it, as GitHub's client did with the first protocol: at the
// server of its own job, and by turns at that of another program's job, which lends it.
const fs = require('fs');
const http = require('http');
const crypto = require('crypto');

const {INPUT_LEND: lend, INPUT_END: end, INPUT_OTHER: other, INPUT_RESERVED: reserved} = process.env;
const size = Number(process.env.INPUT_MIB) << 20;
const rounds = Number(process.env.INPUT_ROUNDS), restores = Number(process.env.INPUT_RESTORES);
const mine = {name: 'own', api: process.env.ACTIONS_CACHE_URL + '_apis/artifactcache/', token: process.env.ACTIONS_RUNTIME_TOKEN};
const agent = new http.Agent({keepAlive: true});
const json = {'Content-Type': 'application/json'};

function ask(server, method, url, headers, body, onData) {
  return new Promise((resolve, reject) => {
    const auth = url.startsWith(server.api) ? {Authorization: 'Bearer ' + server.token} : {};
    const req = http.request(url, {method, agent, headers: {...auth, Accept: 'application/json;api-version=6.0-preview.1', ...headers}}, res => {
      const parts = [];
      res.on('data', onData || (b => parts.push(b)));
      res.on('error', reject);
      res.on('end', () => res.statusCode < 300 ? resolve(Buffer.concat(parts)) : reject(new Error(`${method} ${url}: ${res.statusCode} ${Buffer.concat(parts)}`)));
    });
    req.on('error', reject);
    req.end(body);
  });
}

async function save(server, key, data) {
  const {cacheId} = JSON.parse(await ask(server, 'POST', server.api + 'caches', json, JSON.stringify({key, version: 'v', cacheSize: size})));
  const chunk = 32 << 20;
  let next = 0;
  await Promise.all([1, 2, 3, 4].map(async () => {
    while (next < size) {
      const from = next, to = next = Math.min(size, from + chunk);
      await ask(server, 'PATCH', server.api + 'caches/' + cacheId, {'Content-Type': 'application/octet-stream', 'Content-Range': `bytes ${from}-${to - 1}/*`}, data.subarray(from, to));
    }
  }));
  await ask(server, 'POST', server.api + 'caches/' + cacheId, json, JSON.stringify({size}));
}

async function restore(server, key) {
  const {archiveLocation} = JSON.parse(await ask(server, 'GET', `${server.api}cache?keys=${key}&version=v`, {}));
  let n = 0;
  await ask(server, 'GET', archiveLocation, {}, undefined, b => { n += b.length; });
  if (n !== size) throw new Error(`${n} bytes of ${size}`);
}

async function timed(what, work) {
  const began = process.hrtime.bigint();
  await work();
  console.log(`${what} ${(process.hrtime.bigint() - began) / 1000n} us`);
}

async function measure() {
  const servers = other ? [mine, {...JSON.parse(fs.readFileSync(other)), name: 'other'}] : [mine];
  const data = Buffer.alloc(size), run = crypto.randomUUID();
  const inOrder = n => n % 2 ? [...servers].reverse() : servers; // nobody always follows the other
  for (let i = 0; i <= rounds; i++) {
    const key = `bench-${run}-${i}`, counts = i > 0 ? '' : 'first ';
    for (const s of inOrder(i)) {
      crypto.randomFillSync(data);
      fs.unlinkSync(reserved + s.name + i);
      await timed(`${counts}${s.name} save`, () => save(s, key, data));
    }
    for (let j = 0; j < restores; j++) {
      for (const s of inOrder(i + j)) await timed(`${counts}${s.name} restore`, () => restore(s, key));
    }
  }
}

if (lend) {
  fs.writeFileSync(lend, JSON.stringify(mine));
  console.log('lent');
  fs.readFileSync(end); // until the other end of the pipe is closed
} else {
  measure().catch(e => { console.error(e); process.exit(1); });
}
