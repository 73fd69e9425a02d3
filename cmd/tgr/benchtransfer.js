// Saves a cache in chunks of 32 MiB, 4 at a time, and fetches it, as GitHub's client did with the first protocol.
const http = require('http');
const crypto = require('crypto');

const api = process.env.ACTIONS_CACHE_URL + '_apis/artifactcache/';
const agent = new http.Agent({keepAlive: true});
const size = Number(process.env.INPUT_MIB) << 20;
const rounds = Number(process.env.INPUT_ROUNDS);

function ask(method, url, headers, body, onData) {
  return new Promise((resolve, reject) => {
    const auth = url.startsWith(api) ? {Authorization: 'Bearer ' + process.env.ACTIONS_RUNTIME_TOKEN} : {};
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

const json = {'Content-Type': 'application/json'};

async function save(key, data) {
  const {cacheId} = JSON.parse(await ask('POST', api + 'caches', json, JSON.stringify({key, version: 'v', cacheSize: size})));
  const chunk = 32 << 20;
  let next = 0;
  await Promise.all([1, 2, 3, 4].map(async () => {
    while (next < size) {
      const from = next, to = next = Math.min(size, from + chunk);
      await ask('PATCH', api + 'caches/' + cacheId, {'Content-Type': 'application/octet-stream', 'Content-Range': `bytes ${from}-${to - 1}/*`}, data.subarray(from, to));
    }
  }));
  await ask('POST', api + 'caches/' + cacheId, json, JSON.stringify({size}));
}

async function restore(key) {
  const {archiveLocation} = JSON.parse(await ask('GET', `${api}cache?keys=${key}&version=v`, {}));
  let n = 0;
  await ask('GET', archiveLocation, {}, undefined, b => { n += b.length; });
  if (n !== size) throw new Error(`${n} bytes of ${size}`);
}

(async () => {
  const data = Buffer.alloc(size), run = crypto.randomUUID();
  for (let i = 0; i <= rounds; i++) {
    crypto.randomFillSync(data);
    const key = `bench-${run}-${i}`, began = process.hrtime.bigint();
    await save(key, data);
    const saved = process.hrtime.bigint();
    await restore(key);
    console.log(`round ${i}: save ${(saved - began) / 1000n} us, restore ${(process.hrtime.bigint() - saved) / 1000n} us`);
  }
})().catch(e => { console.error(e); process.exit(1); });
