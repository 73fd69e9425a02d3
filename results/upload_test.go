package results

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/terraphim/tgr"
)

// create begins the upload of a cache and returns its address.
func (c *client) create(key string) string {
	c.t.Helper()
	return c.want(200, c.cache("CreateCacheEntry", map[string]any{"key": key, "version": version})).field("signed_upload_url")
}

func (c *client) finalize(key string, size int) response {
	c.t.Helper()
	return c.cache("FinalizeCacheEntryUpload", map[string]any{"key": key, "version": version, "size_bytes": fmt.Sprint(size)})
}

func (c *client) block(addr string, i int, data string) response {
	c.t.Helper()
	return c.do("PUT", addr+"&comp=block&blockid="+blockID(i), strings.NewReader(data))
}

func (c *client) blockList(addr string, blocks ...int) response {
	c.t.Helper()
	list := `<?xml version="1.0" encoding="UTF-8" standalone="yes"?><BlockList>`
	for _, i := range blocks {
		list += "<Latest>" + blockID(i) + "</Latest>"
	}
	return c.do("PUT", addr+"&comp=blocklist", strings.NewReader(list+"</BlockList>"))
}

// Blocks come in any order, some twice, some in vain; the list says what the blob is.
func TestUploadBlocks(t *testing.T) {
	s := opened(t, Config{})
	c := began(t, s, jobOn(1, "main"))
	addr := c.create("k")
	for _, b := range []struct {
		i    int
		data string
	}{{2, "ccc"}, {0, "old"}, {3, "in vain"}, {1, ""}, {0, "aaa"}} {
		c.want(201, c.block(addr, b.i, b.data))
	}
	c.want(400, c.blockList(addr, 0, 1, 9))
	c.want(400, c.blockList(addr, 0, 0))
	c.want(201, c.blockList(addr, 0, 1, 2))
	c.want(201, c.blockList(addr, 0, 1, 2)) // the answer was lost
	c.want(409, c.blockList(addr, 2, 1))
	c.want(409, c.block(addr, 4, "late"))
	c.want(200, c.finalize("k", 6))
	if _, data := c.restore("k"); string(data) != "aaaccc" {
		t.Errorf("restored %q", data)
	}
	if n := files(t, filepath.Join(s.cfg.Dir, "blobs")); n != 3 { // aaa, ccc and nothing
		t.Errorf("%d files are kept, want 3", n)
	}
	if n := files(t, filepath.Join(s.cfg.Dir, "tmp")); n != 0 {
		t.Errorf("%d uploads are left over", n)
	}
}

// gated is a store that keeps bytes when it is let to.
type gated struct {
	Blobs
	begun chan bool // somebody wants to keep some
	pass  chan bool
}

func (g *gated) Put(ctx context.Context, hash, file string) error {
	g.begun <- true
	<-g.pass
	return g.Blobs.Put(ctx, hash, file)
}

// Bytes that arrive when nobody wants them any more are not kept: the list left out their block, or another one has
// taken its place, or the job has ended.
func TestUploadUnwanted(t *testing.T) {
	dir := t.TempDir()
	g := &gated{&disk{filepath.Join(dir, "blobs")}, make(chan bool), make(chan bool)}
	s := opened(t, Config{Dir: dir, Blobs: g})
	c := began(t, s, jobOn(1, "main"))
	addr := c.create("k")
	answers := make(chan response)
	send := func(i int, data string) {
		go func() { answers <- c.block(addr, i, data) }()
		<-g.begun
	}
	finish := func() response { g.pass <- true; return <-answers }
	send(0, "kept")
	c.want(201, finish())
	send(1, "old")
	send(1, "new")
	finish()
	finish()
	if n := files(t, filepath.Join(dir, "blobs")); n != 2 {
		t.Errorf("%d files with a block that was replaced, want 2", n)
	}
	send(2, "left out")
	c.want(201, c.blockList(addr, 0))
	finish()
	c.want(200, c.finalize("k", 4))
	if n := files(t, filepath.Join(dir, "blobs")); n != 1 {
		t.Errorf("%d files with a block that the list left out, want 1", n)
	}
	addr = c.create("unfinished")
	send(3, "late")
	if err := c.x.Close(); err != nil {
		t.Fatal(err)
	}
	finish()
	for end := time.Now().Add(10 * time.Second); files(t, filepath.Join(dir, "blobs")) != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the bytes of a job that has ended are left")
		}
	}
}

// A blob that came in one piece, and comes again with other bytes, is not finished by what it was.
func TestUploadWholeAgain(t *testing.T) {
	dir := t.TempDir()
	g := &gated{&disk{filepath.Join(dir, "blobs")}, make(chan bool), make(chan bool)}
	s := opened(t, Config{Dir: dir, Blobs: g})
	c := began(t, s, jobOn(1, "main"))
	artifact := c.want(200, c.artifact("CreateArtifact", map[string]any{"name": "k"})).field("signed_upload_url")
	answers := make(chan response)
	finalize := func(size int) response {
		return c.artifact("FinalizeArtifact", map[string]any{"name": "k", "size": fmt.Sprint(size)})
	}
	for addr, finish := range map[string]func(int) response{artifact: finalize, c.create("k"): func(n int) response { return c.finalize("k", n) }} {
		send := func(data string) {
			go func() { answers <- c.do("PUT", addr, strings.NewReader(data), "x-ms-blob-type", "BlockBlob") }()
			<-g.begun
		}
		send("a")
		g.pass <- true
		c.want(201, <-answers)
		send("much longer")
		c.want(400, finish(1))
		g.pass <- true
		c.want(201, <-answers)
		c.want(200, finish(len("much longer")))
	}
	if _, data := c.restore("k"); string(data) != "much longer" {
		t.Errorf("restored %q", data)
	}
	if got := c.names(); got != "k=much longer" {
		t.Errorf("there are %q", got)
	}
}

// An upload goes on with another server on the same folder: a restart in its middle loses nothing.
func TestUploadRestart(t *testing.T) {
	dir := t.TempDir()
	first := opened(t, Config{Dir: dir})
	c := began(t, first, jobOn(1, "main"))
	addr, v1 := c.create("k"), jobOn(1, "main")
	c.want(201, c.block(addr, 1, "world"))
	if err := first.Close(); err != nil { // as a crash leaves it: sessions are not closed, but end
		t.Fatal(err)
	}
	if r := c.block(addr, 0, "hello "); r.status == 201 {
		t.Errorf("a closed service took a block: %s", r)
	}
	second := opened(t, Config{Dir: dir})
	again := began(t, second, v1)
	again.env = c.env // the job has the token that it was given
	moved := again.base + strings.TrimPrefix(addr, c.base)
	again.want(201, again.block(moved, 0, "hello "))
	again.want(201, again.blockList(moved, 0, 1))
	again.want(200, again.finalize("k", 11))
	if _, data := again.restore("k"); string(data) != "hello world" {
		t.Errorf("restored %q", data)
	}
}

// TestUploadAddresses changes every part of a signed address, and uses it where it does not belong.
func TestUploadAddresses(t *testing.T) {
	now := newClock()
	s := opened(t, Config{Now: now.Now})
	c, other := began(t, s, jobOn(1, "main")), began(t, s, jobOn(2, "main"))
	c.want(200, c.save("done", []byte("bytes")))
	read := c.want(200, c.cache("GetCacheEntryDownloadURL", map[string]any{"key": "done", "version": version})).field("signed_download_url")
	write := c.create("k")
	put := func(addr string) response {
		return c.do("PUT", addr, strings.NewReader("x"), "x-ms-blob-type", "BlockBlob")
	}
	edit := func(addr, name, value string) string {
		u, err := url.Parse(addr)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		if q.Set(name, value); value == "" {
			q.Del(name)
		}
		u.RawQuery = q.Encode()
		return u.String()
	}
	for name, addr := range map[string]string{
		"no signature":      edit(write, "sig", ""),
		"another signature": edit(write, "sig", strings.Repeat("A", 43)),
		"no expiry":         edit(write, "se", ""),
		"later":             edit(write, "se", fmt.Sprint(now.Now().Add(48*time.Hour).Unix())),
		"never":             edit(write, "se", "never"),
		"another operation": edit(write, "op", "r"),
		"another blob":      strings.Replace(write, "/blob/2", "/blob/1", 1),
		"no number":         strings.Replace(write, "/blob/2", "/blob/x", 1),
		"spelled otherwise": strings.Replace(write, "/blob/2", "/blob/02", 1),
		"twice":             write + "&op=w",
		"for reading":       read,
		"moved fields":      strings.Replace(write, "op=w", "op=w1", 1),
	} {
		if r := put(addr); r.status != 401 || r.header.Get("X-Ms-Error-Code") != "AuthenticationFailed" {
			t.Errorf("%s: %s", name, r)
		}
	}
	c.want(401, c.do("GET", edit(read, "sig", "x"), nil))
	c.want(401, c.do("GET", edit(write, "op", "r"), nil))
	c.want(401, other.do("GET", other.base+strings.TrimPrefix(read, c.base), nil)) // another job's link
	c.want(401, other.do("PUT", other.base+strings.TrimPrefix(write, c.base), strings.NewReader("x"), "x-ms-blob-type", "BlockBlob"))
	c.want(200, c.do("GET", read, nil))
	now.add(urlsFor + time.Minute)
	c.want(401, c.do("GET", read, nil))
	c.want(401, put(write))
	if n := files(t, filepath.Join(s.cfg.Dir, "blobs")); n != 1 {
		t.Errorf("%d files, want that of the saved cache alone", n)
	}
}

// TestTokens: a job's services believe no token but this job's.
func TestTokens(t *testing.T) {
	now := newClock()
	s := opened(t, Config{Now: now.Now, Issuer: "https://tgr.example"})
	c := began(t, s, jobOn(1, "main"))
	foreign := opened(t, Config{Now: now.Now})
	retried, attempt, fork, repo := jobOn(1, "main"), jobOn(1, "main"), jobOn(1, "main"), jobOn(1, "main")
	retried.Lease, attempt.Run.Attempt, fork.Run.Event.Forked, repo.Run.Event.Repo.ID = "another", 2, true, 8
	good := c.env["ACTIONS_RUNTIME_TOKEN"]
	tokens := map[string]string{
		"none": "", "no JWT": "abc", "of another server": began(t, foreign, jobOn(1, "main")).env["ACTIONS_RUNTIME_TOKEN"],
		"of another job": began(t, s, jobOn(2, "main")).env["ACTIONS_RUNTIME_TOKEN"], "of another try": began(t, s, retried).env["ACTIONS_RUNTIME_TOKEN"],
		"of another attempt": began(t, s, attempt).env["ACTIONS_RUNTIME_TOKEN"], "of an untrusted run": began(t, s, fork).env["ACTIONS_RUNTIME_TOKEN"],
		"of another repository": began(t, s, repo).env["ACTIONS_RUNTIME_TOKEN"], "for identity": c.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"],
		"cut": good[:len(good)-2], "huge": strings.Repeat("x", 60_000),
		"unsigned": unsigned(t, good),
	}
	for name, token := range tokens {
		for _, path := range []string{"/twirp/github.actions.results.api.v1.CacheService/CreateCacheEntry", "/_apis/artifactcache/caches"} {
			r := c.do("POST", c.base+path, strings.NewReader(`{"key":"k","version":"v"}`), "Content-Type", "application/json", "Authorization", "Bearer "+token)
			if r.status != 401 || r.field("msg") == "" || r.field("message") == "" {
				t.Errorf("token %s at %s: %s", name, path, r)
			}
		}
	}
	c.want(401, c.do("GET", c.env["ACTIONS_ID_TOKEN_REQUEST_URL"], nil, "Authorization", "Bearer "+good))
	c.want(200, c.cache("CreateCacheEntry", map[string]any{"key": "k", "version": "v"}))
	now.add(tokenFor + time.Minute)
	c.want(401, c.cache("CreateCacheEntry", map[string]any{"key": "k2", "version": "v"}))
}

// unsigned is a token with the same claims and the algorithm none.
func unsigned(t *testing.T, token string) string {
	t.Helper()
	var claims jwt.MapClaims = map[string]any{}
	if _, _, err := jwt.NewParser().ParseUnverified(token, claims); err != nil {
		t.Fatal(err)
	}
	text, err := jwt.NewWithClaims(jwt.SigningMethodNone, claims).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// What a job did not finish goes with it, and nothing of it is believed afterwards.
func TestSessionClose(t *testing.T) {
	s := opened(t, Config{})
	c := began(t, s, jobOn(1, "main"))
	c.want(200, c.save("kept", []byte("kept")))
	addr := c.create("unfinished")
	c.want(201, c.block(addr, 0, "unfinished"))
	if err := c.x.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.x.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if r := c.block(addr, 1, "x"); r.status != -1 {
		t.Errorf("the port of a job that has ended answers: %s", r)
	}
	late := &client{t: t, x: c.x, env: c.env}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.x.Serve(l); err != nil {
		t.Errorf("serve after the end: %v", err)
	}
	server := &http.Server{Handler: c.x.Handler()} // someone who held on to it
	if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	defer server.Close()
	late.base = "http://" + l.Addr().String()
	late.want(401, late.block(late.base+strings.TrimPrefix(addr, c.base), 1, "x"))
	late.want(401, late.cache("CreateCacheEntry", map[string]any{"key": "late", "version": version}))
	if n := files(t, filepath.Join(s.cfg.Dir, "blobs")); n != 1 {
		t.Errorf("%d files are left, want that of the finished cache", n)
	}
	next := began(t, s, jobOn(2, "main"))
	if key, data := next.restore("kept"); key != "kept" || string(data) != "kept" {
		t.Errorf("the next job finds %q", data)
	}
}

// TestUploadRefused: block lists, ids and bodies that make no sense, or too much of it.
func TestUploadRefused(t *testing.T) {
	s := opened(t, Config{Limits: Limits{Blocks: 5, BlobBytes: 100, JobBytes: 1000, Uploads: 3}})
	c := began(t, s, jobOn(1, "main"))
	addr := c.create("k")
	for _, id := range []string{"", "no base64!", "%00", "YQ", strings.Repeat("YWFh", 30)} {
		c.want(400, c.do("PUT", addr+"&comp=block&blockid="+id, strings.NewReader("x")))
	}
	for name, list := range map[string]string{
		"empty body": "", "no XML": "hello", "cut": "<BlockList><Latest>", "another element": "<Other/>",
		"deep":            strings.Repeat("<BlockList>", 1000),
		"entities":        `<!DOCTYPE x [<!ENTITY a "aaaa">]><BlockList><Latest>&a;</Latest></BlockList>`,
		"an unknown kind": "<BlockList><Newest>YQ==</Newest></BlockList>",
	} {
		if r := c.do("PUT", addr+"&comp=blocklist", strings.NewReader(list)); r.status != 400 {
			t.Errorf("block list %s: %s", name, r)
		}
	}
	begin := time.Now()
	c.want(400, c.do("PUT", addr+"&comp=blocklist", strings.NewReader("<BlockList><Latest>"+strings.Repeat("a<!---->", maxList/8-10)+"</Latest></BlockList>")))
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("an id in many pieces was read for %v", d)
	}
	addr = c.create("k2")
	c.want(413, c.do("PUT", addr+"&comp=blocklist", strings.NewReader("<BlockList>"+strings.Repeat("<Latest>YQ==</Latest>", 6)+"</BlockList>")))
	c.want(413, c.do("PUT", addr+"&comp=blocklist", io.LimitReader(endless{}, 1<<30)))
	c.want(400, c.do("PUT", addr, strings.NewReader("x"), "x-ms-blob-type", "AppendBlob"))
	c.want(400, c.do("PUT", addr, strings.NewReader("x")))
	c.want(400, c.do("PUT", addr+"&comp=lease", strings.NewReader("x")))
	c.want(413, c.do("PUT", addr, strings.NewReader(strings.Repeat("x", 101)), "x-ms-blob-type", "BlockBlob"))
	c.want(413, c.do("PUT", addr, struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 101))}, "x-ms-blob-type", "BlockBlob"))
	for i := range 5 {
		c.want(201, c.block(addr, i, strings.Repeat("y", 20)))
	}
	c.want(413, c.block(addr, 5, "z"))
	c.want(413, c.block(addr, 1, strings.Repeat("y", 21)))
	c.create("k3")
	c.want(413, c.cache("CreateCacheEntry", map[string]any{"key": "k4", "version": version}))
	for i := 0; ; i++ {
		r := c.block(addr, 0, strings.Repeat("y", 20))
		if r.status == 413 {
			break
		}
		if c.want(201, r); i > 100 {
			t.Fatal("a job may send as much as it likes")
		}
	}
	c.want(404, c.do("DELETE", addr, nil))
	c.want(404, c.do("GET", c.base+"/blob/../../etc/passwd", nil))
	c.want(404, c.do("GET", c.base+"/", nil))
	if n := files(t, filepath.Join(s.cfg.Dir, "tmp")); n != 0 {
		t.Errorf("%d uploads are left over", n)
	}
}

// endless is as much of the letter A as anybody wants.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'A'
	}
	return len(p), nil
}

// A client that stops in the middle is cut off, and a body that ends early leaves nothing.
func TestUploadSlow(t *testing.T) {
	s := opened(t, Config{Limits: Limits{Idle: 50 * time.Millisecond}})
	c := began(t, s, jobOn(1, "main"))
	addr, err := url.Parse(c.create("k"))
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []func(net.Conn){
		func(conn net.Conn) { conn.SetReadDeadline(time.Now().Add(30 * time.Second)) }, // waits for the server to have had enough
		func(conn net.Conn) { conn.(*net.TCPConn).CloseWrite() },
	} {
		conn, err := net.Dial("tcp", addr.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "PUT %s&comp=block&blockid=%s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf", addr.RequestURI(), blockID(0))
		end(conn)
		b, err := io.ReadAll(conn)
		if err != nil || strings.Contains(string(b), " 201 ") {
			t.Errorf("a body that does not come was answered with %q, %v", b, err)
		}
	}
	if n := files(t, s.cfg.Dir+"/tmp") + files(t, s.cfg.Dir+"/blobs"); n != 0 {
		t.Errorf("%d files are left of it", n)
	}
	// One that is slow but goes on is served.
	r, w := io.Pipe()
	go func() {
		for range 20 {
			time.Sleep(10 * time.Millisecond)
			io.WriteString(w, "x")
		}
		w.Close()
	}()
	c.want(201, c.do("PUT", addr.String()+"&comp=block&blockid="+blockID(1), r))
}

// The length of a file is that of the bytes that have come, not of those that are announced: after a power cut it is how
// one that lost some is known.
func TestUploadLength(t *testing.T) {
	s := opened(t, Config{})
	c := began(t, s, jobOn(1, "main"))
	addr := c.create("k")
	r, w := io.Pipe()
	sent := make(chan response, 1)
	go func() {
		req, err := http.NewRequest("PUT", addr+"&comp=block&blockid="+blockID(0), r)
		if err != nil {
			panic(err)
		}
		req.ContentLength = 1 << 20
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			panic(err)
		}
		resp.Body.Close()
		sent <- response{status: resp.StatusCode}
	}()
	w.Write(make([]byte, 100<<10))
	var size int64
	for end := time.Now().Add(10 * time.Second); size == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		found, err := filepath.Glob(filepath.Join(s.cfg.Dir, "tmp/*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			if info, err := os.Stat(path); err == nil {
				size = info.Size()
			}
		}
	}
	if size == 0 || size > 100<<10 {
		t.Errorf("after 100 KiB of 1 MiB the file has %d bytes", size)
	}
	w.Write(make([]byte, 1<<20-100<<10))
	w.Close()
	c.want(201, <-sent)
}

// TestDownloadRange compares with a slice, over blobs of several blocks.
func TestDownloadRange(t *testing.T) {
	c := began(t, opened(t, Config{}), jobOn(1, "main"))
	addr := c.create("k")
	for i, data := range []string{"01234", "", "56", "789"} {
		c.want(201, c.block(addr, i, data))
	}
	c.want(201, c.blockList(addr, 0, 1, 2, 3))
	c.want(200, c.finalize("k", 10))
	read := c.want(200, c.cache("GetCacheEntryDownloadURL", map[string]any{"key": "k", "version": version})).field("signed_download_url")
	for _, tt := range []struct {
		header string
		status int
		want   string
	}{
		{"", 200, "0123456789"}, {"bytes=0-0", 206, "0"}, {"bytes=3-6", 206, "3456"}, {"bytes=5-", 206, "56789"}, {"bytes=-3", 206, "789"},
		{"bytes=0-99", 206, "0123456789"}, {"bytes=-99", 206, "0123456789"}, {"bytes=9-9", 206, "9"},
		{"bytes=10-", 416, ""}, {"bytes=-0", 416, ""},
		{"bytes=6-3", 200, "0123456789"}, {"bytes=0-1,3-4", 200, "0123456789"}, {"items=0-1", 200, "0123456789"}, {"bytes=x-", 200, "0123456789"},
		{"bytes=99999999999999999999-", 200, "0123456789"},
	} {
		for _, name := range []string{"Range", "x-ms-range"} {
			r := c.do("GET", read, nil, name, tt.header)
			if r.status != tt.status || tt.status != 416 && string(r.body) != tt.want {
				t.Errorf("%s %s: %s, want %d %q", name, tt.header, r, tt.status, tt.want)
			}
		}
	}
	if r := c.do("HEAD", read, nil); r.status != 200 || r.header.Get("Content-Length") != "10" || len(r.body) != 0 {
		t.Errorf("HEAD: %s, %v", r, r.header)
	}
}

// A download that began is whole, whatever is evicted meanwhile.
func TestDownloadWhileEvicted(t *testing.T) {
	s := opened(t, Config{Limits: Limits{CacheBytes: 24 << 20}})
	c := began(t, s, jobOn(1, "main"))
	blob := make([]byte, 16<<20)
	rand.Read(blob)
	c.want(200, c.save("large", blob))
	read := c.want(200, c.cache("GetCacheEntryDownloadURL", map[string]any{"key": "large", "version": version})).field("signed_download_url")
	resp, err := http.Get(read)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	head := make([]byte, 1)
	if _, err := io.ReadFull(resp.Body, head); err != nil {
		t.Fatal(err)
	}
	c.want(200, c.save("next", blob[:12<<20]))
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(append(head, rest...), blob) {
		t.Errorf("%d bytes came, or others: %v", len(rest)+1, err)
	}
}

// Many uploads at once, each of several blocks at once, are all as they were sent.
func TestUploadParallel(t *testing.T) {
	s := opened(t, Config{})
	c := began(t, s, jobOn(1, "main"))
	var uploads sync.WaitGroup
	for n := range 8 {
		uploads.Go(func() {
			key, addr := fmt.Sprint("k", n), c.create(fmt.Sprint("k", n))
			var want strings.Builder
			var blocks sync.WaitGroup
			var list []int
			for i := range 16 {
				data := strings.Repeat(fmt.Sprint(n, "-", i, " "), 10_000)
				want.WriteString(data)
				list = append(list, i)
				blocks.Go(func() {
					if r := c.block(addr, i, data); r.status != 201 {
						t.Errorf("block %d of %s: %s", i, key, r)
					}
				})
			}
			blocks.Wait()
			if r := c.blockList(addr, list...); r.status != 201 {
				t.Errorf("list of %s: %s", key, r)
			}
			if r := c.finalize(key, want.Len()); r.status != 200 {
				t.Errorf("finalize %s: %s", key, r)
			}
			if _, data := c.restore(key); string(data) != want.String() {
				t.Errorf("%s came back with %d bytes, or others", key, len(data))
			}
		})
	}
	uploads.Wait()
}

// TestSweep: what nobody finishes, and artifacts that have expired, go; what is young, or of a job that runs, stays.
func TestSweep(t *testing.T) {
	now := newClock()
	dir := t.TempDir()
	s := opened(t, Config{Dir: dir, Now: now.Now})
	running, dead := began(t, s, jobOn(1, "main")), began(t, s, jobOn(2, "main"))
	running.want(201, running.block(running.create("goes on"), 0, "goes on"))
	dead.want(201, dead.block(dead.create("dies"), 0, "dies"))
	running.want(200, running.upload("kept", "kept for 90 days"))
	dead.x.halt()
	left := func() int { return files(t, filepath.Join(dir, "blobs")) }
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{0, 3}, {unfinishedFor + time.Minute, 2}, {90 * 24 * time.Hour, 1}} {
		now.add(step.after)
		if err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := left(); got != step.want {
			t.Errorf("%v later %d files are left, want %d", step.after, got, step.want)
		}
	}
}

func TestOpenRefused(t *testing.T) {
	if _, err := Open(t.Context(), Config{}); tgr.CodeOf(err) != tgr.Invalid {
		t.Errorf("no folder: %v", err)
	}
	s := opened(t, Config{})
	for _, j := range []Job{{}, {ID: 1}, {ID: 1, Lease: "x"}} {
		if _, err := s.Begin(t.Context(), j); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("job %+v: %v", j, err)
		}
	}
	s.Close()
	if _, err := s.Begin(t.Context(), jobOn(1, "main")); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("a session of a closed service: %v", err)
	}
	if err := s.meta.w.Close(); err != nil {
		t.Fatal(err)
	}
	again := opened(t, Config{Dir: s.cfg.Dir})
	if _, err := again.meta.w.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: s.cfg.Dir}); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a schema of the future: %v", err)
	}
}
