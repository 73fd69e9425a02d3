package vmapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// FuzzRequests: no body crashes a handler, and every answer is JSON with a status that says whose fault it is.
func FuzzRequests(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"name":"x","vcpus":1,"labels":["linux"]}`, `{"args":["a",{"base64":"/w=="}],"env":["A=b"],"tty":{"rows":1,"cols":2}}`, `{"script":"exit 1","timeout_ms":5}`,
		`{"language":"bash","code":"true","vm_id":"vm-0","timeout_seconds":1.5,"metadata":{"a":[1]}}`, `{"seconds":60}`, `{"outcome":"failed"}`,
		`{"rows":65536}`, `[`, `null`, `{"args":[{"base64":3}]}`, `{"timeout_ms":-1e308}`, strings.Repeat("[", 1000),
	} {
		f.Add(seed)
	}
	s, err := New(Config{Key: testKey, Max: 4, Open: openNothing})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	token := must(NewToken(testKey, "fuzz", time.Hour))
	paths := strings.NewReplacer("{id}", "vm-0", "{exec}", "x", "{snapshot}", "y")
	f.Fuzz(func(t *testing.T, body string) {
		for _, rt := range routeTable() {
			if rt.method != http.MethodPost {
				continue
			}
			r := httptest.NewRequest(rt.method, paths.Replace(rt.path), strings.NewReader(body))
			r.Header.Set("Authorization", "Bearer "+token)
			if rt.once {
				r.Header.Set("Idempotency-Key", "k")
			}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			var v map[string]any
			if w.Code >= 500 && w.Code != 503 || json.Unmarshal(w.Body.Bytes(), &v) != nil {
				t.Errorf("%s with %q: %d %s", rt.path, body, w.Code, w.Body)
			}
		}
		for _, v := range []interface{ check() error }{&ExecRequest{}} {
			if decodeStrict([]byte(body), v) == nil && v.check() == nil {
				again := must(json.Marshal(v))
				back := &ExecRequest{}
				if err := decodeStrict(again, back); err != nil || !bytes.Equal(again, must(json.Marshal(back))) {
					t.Errorf("%q is not read as it is written: %s, %v", body, again, err)
				}
			}
		}
	})
}

// FuzzEvents: whatever a server sends for a stream, the client ends with an exit that makes sense, or an error.
func FuzzEvents(f *testing.F) {
	for _, seed := range []string{
		"{\"type\":\"started\",\"id\":\"x\"}\n{\"type\":\"stdout\",\"data\":\"aGk=\"}\n{\"type\":\"exit\",\"exit\":{\"code\":0,\"started\":true,\"duration_ms\":1}}\n",
		"{\"type\":\"exit\"}\n", "{\"type\":\"exit\",\"exit\":{\"code\":-1}}\n", "{\"type\":\"error\"}\n", "{\"type\":\"error\",\"error\":{\"error\":\"x\",\"code\":\"lost\"}}",
		"{\"type\":\"beat\"}\n", "", "\n", "{\"type\":\"what\"}\n", "{\"type\":\"stdout\",\"data\":\"!\"}\n",
	} {
		f.Add([]byte(seed))
	}
	var answer []byte
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(answer) }))
	f.Cleanup(hs.Close)
	c := must(NewClient(ClientConfig{URL: hs.URL}))
	m := &Machine{c: c, id: "vm-0", stop: func() {}}
	f.Fuzz(func(t *testing.T, b []byte) {
		answer = b
		exit, err := m.Exec(ctx(t), sh("true"), nil)
		if err == nil && (!bytes.Contains(b, []byte("exit")) || exit.Signal == "" && (exit.Code < 0 || exit.Code > 255)) {
			t.Errorf("%q: %+v", b, exit)
		}
	})
}

// FuzzNews: the same for what a script says of a command.
func FuzzNews(f *testing.F) {
	for _, seed := range []string{"exit 0 y\nout aGk=\nerr \nsaid \n", "exit \nout \nerr \nsaid ", "exit 137 k\nout \nerr \nsaid eA==", "exit 256 y\nout \nerr \nsaid ", "exit 1 yn\nout \nerr \nsaid ", "", "exit -1 y\nout !\nerr \nsaid "} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := readNews(text)
		if err == nil && (n.exit.Code < 0 || n.exit.Code > 255 || len(n.output[0]) > plainPiece || n.exit.Success() && !strings.HasPrefix(text, "exit 0")) {
			t.Errorf("%q: %+v", text, n)
		}
	})
}
