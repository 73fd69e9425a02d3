package results

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// restarting serves a job by one Service after another on one folder: what a server that restarts looks like from
// inside a machine. When the client has sent some blocks, the Service is closed and another one opened.
type restarting struct {
	t      *testing.T
	dir    string
	blocks int // to be let through before the restart

	mu       sync.Mutex
	service  *Service
	session  *Session
	seen     int
	restarts int
}

func (r *restarting) start() {
	r.t.Helper()
	var err error
	if r.service, err = Open(context.Background(), Config{Dir: r.dir}); err != nil {
		r.t.Fatal(err)
	}
	if r.session, err = r.service.Begin(context.Background(), jobOn(1, "main")); err != nil {
		r.t.Fatal(err)
	}
}

// ServeHTTP breaks the connection of the block at which the server dies, and of those that come until it is back.
func (r *restarting) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	if strings.Contains(req.URL.RawQuery, "comp=block&") {
		if r.seen++; r.seen == r.blocks {
			r.restarts++
			if err := r.service.Close(); err != nil {
				r.t.Error(err)
			}
			r.start()
			r.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
	}
	h := r.session.Handler()
	r.mu.Unlock()
	h.ServeHTTP(w, req)
}

// TestRestartUnderClient restarts the service while GitHub's client uploads 40 MiB in blocks: the client notices nothing
// but a connection that broke, and the artifact is whole.
func TestRestartUnderClient(t *testing.T) {
	npmDir(t)
	r := &restarting{t: t, dir: t.TempDir(), blocks: 3}
	r.start()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go server.Serve(l)
	defer server.Close()
	env, err := r.session.Env(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	out := nodeScript(t, &client{t: t, x: r.session, env: env}, []byte(`
import {DefaultArtifactClient} from '@actions/artifact';
import * as crypto from 'crypto';
import * as fs from 'fs';
const ws = process.env.GITHUB_WORKSPACE;
const bytes = crypto.randomBytes(40 << 20);
fs.writeFileSync(ws + '/blob', bytes);
const a = new DefaultArtifactClient();
const up = await a.uploadArtifact('blob', [ws + '/blob'], ws, {compressionLevel: 0});
const down = await a.downloadArtifact(up.id, {path: ws + '/dl', expectedHash: 'sha256:' + up.digest});
console.log('RESULT', down.digestMismatch, fs.readFileSync(ws + '/dl/blob').equals(bytes));
`), nil)
	if !strings.Contains(out, "RESULT false true") {
		t.Errorf("the artifact is not what was uploaded:\n%s", out)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.restarts != 1 {
		t.Errorf("the service restarted %d times", r.restarts)
	}
	if err := r.service.Close(); err != nil {
		t.Error(err)
	}
}
