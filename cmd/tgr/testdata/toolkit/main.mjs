// An action made of GitHub's own toolkit. Its input "do" says what it does; it fails when anything is not as it should be.
import * as cache from '@actions/cache';
import * as core from '@actions/core';
import * as exec from '@actions/exec';
import * as github from '@actions/github';
import * as glob from '@actions/glob';
import * as tools from '@actions/tool-cache';
import {DefaultArtifactClient} from '@actions/artifact';
import * as crypto from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';

const artifacts = new DefaultArtifactClient();
const workspace = process.env.GITHUB_WORKSPACE;
const size = Number(core.getInput('mib') || '1') << 20;

function check(ok, what) {
  if (!ok) throw new Error(what);
  core.info('ok: ' + what);
}

const sum = file => crypto.createHash('sha256').update(fs.readFileSync(file)).digest('hex');

// make fills a file with bytes that do not compress, and that a seed determines.
function make(file, seed) {
  fs.mkdirSync(path.dirname(file), {recursive: true});
  const c = crypto.createCipheriv('aes-128-ctr', crypto.createHash('md5').update(seed).digest(), Buffer.alloc(16));
  const out = fs.openSync(file, 'w');
  for (let n = 0; n < size; n += 1 << 20) fs.writeSync(out, c.update(Buffer.alloc(1 << 20)));
  fs.closeSync(out);
  return sum(file);
}

const all = {
  async save() {
    const hash = make('deps/blob', 'cache');
    check(await cache.restoreCache(['deps'], 'deps-none', ['deps-none-']) === undefined, 'there is no cache yet');
    const began = Date.now();
    check(await cache.saveCache(['deps'], 'deps-1') > 0, 'the cache is saved');
    core.info(`saved ${size >> 20} MiB in ${Date.now() - began} ms`);
    check(await cache.saveCache(['deps'], 'deps-1') === -1, 'it is saved once');
    core.setOutput('hash', hash);
  },
  async restore() {
    check(!fs.existsSync('deps'), 'the machine is new');
    const began = Date.now();
    check(await cache.restoreCache(['deps'], 'deps-2', ['deps-']) === 'deps-1', 'the cache is found by its prefix');
    core.info(`restored ${fs.statSync("deps/blob").size >> 20} MiB in ${Date.now() - began} ms`);
    check(sum('deps/blob') === core.getInput('hash'), 'the bytes are the same');
  },
  async upload() {
    const hash = make('out/a/large', 'artifact');
    fs.writeFileSync('out/small.txt', 'small');
    const list = ['out/a/large', 'out/small.txt'].map(f => path.join(workspace, f));
    const r = await artifacts.uploadArtifact('build', list, path.join(workspace, 'out'), {retentionDays: 1, compressionLevel: 0});
    check(r.id > 0 && /^[0-9a-f]{64}$/.test(r.digest), 'the artifact is uploaded');
    await Promise.all([1, 2, 3, 4].map(i => artifacts.uploadArtifact('par-' + i, [list[1]], path.join(workspace, 'out'))));
    await artifacts.uploadArtifact('ignored', [list[1]], workspace, {skipArchive: true});
    core.setOutput('hash', hash);
  },
  async download() {
    const names = (await artifacts.listArtifacts()).artifacts.map(a => a.name).filter(n => /^(build|par-|small)/.test(n)).sort(); // other jobs have theirs
    check(names.join() === 'build,par-1,par-2,par-3,par-4,small.txt', 'the artifacts are ' + names);
    const {artifact} = await artifacts.getArtifact('build');
    const r = await artifacts.downloadArtifact(artifact.id, {path: path.join(workspace, 'got'), expectedHash: artifact.digest});
    check(!r.digestMismatch && sum('got/a/large') === core.getInput('hash') && fs.readFileSync('got/small.txt', 'utf8') === 'small', 'the artifact is whole');
    const raw = await artifacts.getArtifact('small.txt');
    await artifacts.downloadArtifact(raw.artifact.id, {path: path.join(workspace, 'raw')});
    check(fs.readFileSync('raw/small.txt', 'utf8') === 'small', 'a file that was not packed came as it is');
    check((await artifacts.deleteArtifact('par-4')).id > 0, 'an artifact is deleted');
  },
  async other() {
    const [repositoryOwner, repositoryName] = process.env.GITHUB_REPOSITORY.split('/');
    const findBy = {token: core.getInput('github-token', {required: true}), repositoryOwner, repositoryName, workflowRunId: Number(core.getInput('run-id'))};
    const names = (await artifacts.listArtifacts({findBy})).artifacts.map(a => a.name).filter(n => /^(build|par-|small)/.test(n)).sort();
    check(names.join() === 'build,par-1,par-2,par-3,small.txt', 'the artifacts of the other run are ' + names);
    const {artifact} = await artifacts.getArtifact('build', {findBy});
    const r = await artifacts.downloadArtifact(artifact.id, {path: path.join(workspace, 'other'), expectedHash: artifact.digest, findBy});
    check(!r.digestMismatch && sum('other/a/large') === core.getInput('hash'), 'the artifact of the other run is whole');
    const raw = await artifacts.getArtifact('small.txt', {findBy});
    await artifacts.downloadArtifact(raw.artifact.id, {path: path.join(workspace, 'other-raw'), findBy});
    check(fs.readFileSync('other-raw/small.txt', 'utf8') === 'small', 'a file of the other run that was not packed came as it is');
    let missing;
    try { await artifacts.getArtifact('nonesuch', {findBy}); } catch (e) { missing = e.name; }
    check(missing === 'ArtifactNotFoundError', 'an artifact that the other run does not have is not found: ' + missing);
  },
  async tools() {
    let out = '';
    await exec.exec('sh', ['-c', 'echo from exec'], {silent: true, listeners: {stdout: b => { out += b; }}});
    check(out === 'from exec\n', 'exec runs a program');
    fs.mkdirSync('tree/deep', {recursive: true});
    fs.writeFileSync('tree/deep/x.txt', 'x');
    const found = await (await glob.create('tree/**/*.txt')).glob();
    check(found.length === 1 && found[0].endsWith('tree/deep/x.txt'), 'glob finds files');
    check(/^[0-9a-f]{64}$/.test(await glob.hashFiles('tree/**/*.txt')), 'glob hashes files');
    const dir = await tools.cacheDir('tree', 'a-tool', '1.2.3');
    check(fs.existsSync(dir + '/deep/x.txt') && tools.find('a-tool', '1.x') === dir, 'tool-cache keeps a tool');
    check(`${github.context.repo.owner}/${github.context.repo.repo}` === process.env.GITHUB_REPOSITORY && github.context.sha === process.env.GITHUB_SHA, 'github knows the run');
    core.setSecret('a-secret-of-the-action');
    core.info('masked: a-secret-of-the-action');
    core.exportVariable('FROM_ACTION', 'multi\nline');
    core.addPath(path.join(workspace, 'tree'));
    await core.summary.addHeading('From the toolkit').write();
    core.notice('a notice', {file: 'x.txt', startLine: 3});
  },
  async identity() {
    const token = await core.getIDToken('sts.example.com');
    const claims = JSON.parse(Buffer.from(token.split('.')[1], 'base64url'));
    check(claims.aud === 'sts.example.com' && claims.sub === `repo:${process.env.GITHUB_REPOSITORY}:ref:refs/heads/main`, 'the token is ours');
    core.setOutput('kid', JSON.parse(Buffer.from(token.split('.')[0], 'base64url')).kid);
  },
};

async function main() {
  for (const name of core.getInput('do', {required: true}).split(/\s+/)) await all[name]();
}

main().catch(e => core.setFailed(e.stack || String(e)));
