package results

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
)

func decodeInto(b []byte, v any) error { return json.Unmarshal(b, v) }

// TestDecode: names in snake and in camel case, numbers as strings and as numbers, unknown fields.
func TestDecode(t *testing.T) {
	for text, want := range map[string]finalizeCache{
		`{"key":"k","size_bytes":"9223372036854775807","version":"v"}`: {"k", 1<<63 - 1, "v"},
		`{"key":"k","sizeBytes":12,"version":"v","metadata":{"a":1}}`:  {"k", 12, "v"},
		`{"size_bytes":"1","sizeBytes":"2"}`:                           {"", 1, ""},
		`{"size_bytes":null}`:                                          {},
		`{}`:                                                           {},
	} {
		var got finalizeCache
		if err := decode([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "[]", "null x", `"k"`, `{"key":1}`, `{"size_bytes":"1.5"}`, `{"size_bytes":"99999999999999999999"}`, `{"size_bytes":{}}`} {
		if err := decode([]byte(text), &finalizeCache{}); err == nil {
			t.Errorf("%s is believed", text)
		}
	}
}

// TestProtobuf saves and restores a cache as clients that are not GitHub's do.
func TestProtobuf(t *testing.T) {
	c := began(t, opened(t, Config{}), jobOn(1, "main"))
	call := func(method string, q, reply message) response {
		t.Helper()
		r := c.do("POST", c.base+"/twirp/github.actions.results.api.v1.CacheService/"+method, bytes.NewReader(encodeProto(q)),
			"Content-Type", "application/protobuf", "Authorization", "Bearer "+c.env["ACTIONS_RUNTIME_TOKEN"])
		if r.status == 200 {
			if kind := r.header.Get("Content-Type"); kind != "application/protobuf" {
				t.Errorf("answered with %s", kind)
			}
			decodeReply(t, r.body, reply)
		}
		return r
	}
	var created createdCache
	c.want(200, call("CreateCacheEntry", &createCache{"k", "v"}, &created))
	c.want(201, c.do("PUT", created.URL, strings.NewReader("bytes"), "x-ms-blob-type", "BlockBlob"))
	var finalized finalizedCache
	c.want(200, call("FinalizeCacheEntryUpload", &finalizeCache{"k", 5, "v"}, &finalized))
	var got gotCache
	c.want(200, call("GetCacheEntryDownloadURL", &getCache{"none", []string{"x", "k"}, "v"}, &got))
	if data := c.want(200, c.do("GET", got.URL, nil)).body; string(data) != "bytes" || got.Key != "k" || finalized.ID == 0 {
		t.Errorf("%q, %+v, %+v", data, got, finalized)
	}
	r := c.do("POST", c.base+"/twirp/github.actions.results.api.v1.ArtifactService/ListArtifacts", strings.NewReader(""),
		"Content-Type", "application/protobuf", "Authorization", "Bearer "+c.env["ACTIONS_RUNTIME_TOKEN"])
	c.want(400, r)
	r = c.do("POST", c.base+"/twirp/github.actions.results.api.v1.CacheService/CreateCacheEntry", strings.NewReader("\xff\xff\xff"),
		"Content-Type", "application/protobuf", "Authorization", "Bearer "+c.env["ACTIONS_RUNTIME_TOKEN"])
	c.want(400, r)
	r = c.do("POST", c.base+"/twirp/github.actions.results.api.v1.CacheService/CreateCacheEntry", io.LimitReader(endless{}, maxJSON+1),
		"Content-Type", "application/json", "Authorization", "Bearer "+c.env["ACTIONS_RUNTIME_TOKEN"])
	c.want(413, r)
}

// decodeReply reads a reply, which has a bool where requests have none.
func decodeReply(t *testing.T, b []byte, m message) {
	t.Helper()
	if err := decodeProto(b, m); err != nil {
		t.Fatal(err)
	}
	m.fields(func(num int, field any) {
		if ok, is := field.(*bool); is {
			*ok = bytes.HasPrefix(b, protowire.AppendVarint(protowire.AppendTag(nil, protowire.Number(num), protowire.VarintType), 1))
			if !*ok {
				t.Errorf("%x does not begin with ok", b)
			}
		}
	})
}

// FuzzMessages: no request breaks the decoders, and what protobuf encodes it decodes to the same.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(`{"key":"k","restore_keys":["a"],"version":"v"}`))
	f.Add(encodeProto(&getCache{"k", []string{"a", "b"}, "v"}))
	f.Add(encodeProto(&finalizeCache{"k", -5, "v"}))
	f.Add([]byte{0x0b, 0x0b, 0x0c})
	f.Fuzz(func(t *testing.T, b []byte) {
		decode(b, &getCache{})
		decode(b, &finalizeArtifact{})
		decode(b, &listArtifacts{})
		var g getCache
		if decodeProto(b, &g) == nil {
			var again getCache
			if err := decodeProto(encodeProto(&g), &again); err != nil || !cmp.Equal(g, again) {
				t.Errorf("%+v became %+v, %v", g, again, err)
			}
		}
		var n finalizeCache
		if decodeProto(b, &n) == nil {
			var again finalizeCache
			if err := decodeProto(encodeProto(&n), &again); err != nil || n != again {
				t.Errorf("%+v became %+v, %v", n, again, err)
			}
		}
	})
}

// FuzzBlockList: a list that is read has as many names as it may, none with markup in it.
func FuzzBlockList(f *testing.F) {
	f.Add([]byte(`<?xml version="1.0" encoding="utf-8"?><BlockList><Latest>YQ==</Latest><Committed> Yg== </Committed><Uncommitted/></BlockList>`))
	f.Add([]byte(`<BlockList><Latest>YQ==`))
	f.Add([]byte(`<!DOCTYPE a [<!ENTITY b "c">]><BlockList>&b;</BlockList>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := readBlockList(bytes.NewReader(b), 10)
		if err == nil && (len(list) > 10 || len(list) > bytes.Count(b, []byte("<"))) {
			t.Errorf("%d blocks of %q", len(list), b)
		}
	})
}

// FuzzRanges: a range is within the blob, and what Content-Range says is what the block is called.
func FuzzRanges(f *testing.F) {
	f.Add("bytes=0-4", "bytes 0-4/*", int64(10))
	f.Add("bytes=-3", "bytes 5-9/10", int64(1))
	f.Add("bytes=9223372036854775807-", "bytes 9223372036854775806-9223372036854775807/*", int64(0))
	f.Fuzz(func(t *testing.T, text, content string, size int64) {
		if size < 0 {
			return
		}
		s, ok, err := parseRange(text, size)
		if err == nil && (s.from < 0 || s.to > size || s.from > s.to || ok && s.from == s.to) {
			t.Errorf("%q of %d is %+v", text, size, s)
		}
		if c, err := parseContentRange(content); err == nil {
			var from, to int64
			if _, err := fmt.Sscanf(c.String(), "%x-%x", &from, &to); err != nil || from != c.from || to != c.to || c.from >= c.to || c.from < 0 {
				t.Errorf("%q is %+v, called %s", content, c, c)
			}
		}
	})
}

// FuzzRequests: whatever a job asks for, it is answered, never as our fault, and it is sent nowhere but to GitHub.
func FuzzRequests(f *testing.F) {
	s, err := Open(f.Context(), Config{Dir: f.TempDir(), Issuer: "https://tgr.example", Limits: Limits{BlobBytes: 1 << 20}})
	if err != nil {
		f.Fatal(err)
	}
	defer s.Close()
	hub := httptest.NewServer(http.NotFoundHandler())
	defer hub.Close()
	x, err := s.Begin(f.Context(), reading(jobOn(1, "main"), hub.URL))
	if err != nil {
		f.Fatal(err)
	}
	defer x.Close()
	env, err := x.Env("127.0.0.1:1")
	if err != nil {
		f.Fatal(err)
	}
	x.job.Runs.Token = env["ACTIONS_RUNTIME_TOKEN"]
	for _, seed := range [][3]string{
		{"POST", "/twirp/github.actions.results.api.v1.CacheService/CreateCacheEntry", `{"key":"k","version":"v"}`},
		{"POST", "/twirp/github.actions.results.api.v1.ArtifactService/CreateArtifact", `{"workflow_run_backend_id":"101-1","workflow_job_run_backend_id":"1","name":"a"}`},
		{"POST", "/_apis/artifactcache/caches", `{"key":"k","version":"v","cacheSize":5}`},
		{"PATCH", "/_apis/artifactcache/caches/1", `hello`},
		{"GET", "/_apis/artifactcache/cache?keys=a,b&version=v", ``},
		{"GET", "/oidc/token?api-version=2.0&audience=x", ``},
		{"PUT", "/blob/1?op=w&se=1&sig=x&comp=block&blockid=YQ==", `x`},
		{"GET", "/blob/1?op=r&se=9999999999&sig=x", ``},
		{"GET", "/github/repos/o/r/actions/runs/101/artifacts?name=a&per_page=1&page=2", ``},
		{"GET", "/github/repos/o/r/actions/artifacts/1/zip", ``},
		{"POST", "/github//evil.example/%2e%2e/@x?y=%0d%0a", `{}`},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, method, target, body string) {
		r, err := http.NewRequest(method, "http://127.0.0.1:1", strings.NewReader(body))
		if err != nil {
			return
		}
		if r.URL, err = r.URL.Parse(target); err != nil {
			return
		}
		token := env["ACTIONS_RUNTIME_TOKEN"]
		if strings.Contains(target, "oidc") {
			token = env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"]
		}
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Content-Range", "bytes 0-4/*")
		w := httptest.NewRecorder()
		x.Handler().ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Errorf("%s %s %q: %d %s", method, target, body, w.Code, w.Body)
		}
		at, err := url.Parse(w.Header().Get("Location"))
		if err != nil || at.Host != "" && at.Host != r.Host && "http://"+at.Host != hub.URL {
			t.Errorf("%s %s: sent to %q, %v", method, target, w.Header().Get("Location"), err)
		}
	})
}
