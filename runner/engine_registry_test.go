package runner_test

import (
	"archive/tar"
	"bytes"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
)

// guarded is a registry whose images below /private/ need a login.
type guarded struct {
	registry http.Handler
	mu       sync.Mutex
	pulled   []string // manifests that were given out, by image
}

const registryUser, registryPassword = "robot", "correct-horse-battery"

func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	private := strings.HasPrefix(r.URL.Path, "/v2/private/")
	// A login asks for /v2/, where who has none is told that there is one to be had.
	if (private || r.URL.Path == "/v2/" && user != "") && (user != registryUser || password != registryPassword) || r.URL.Path == "/v2/" && user == "" {
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
		return
	}
	if image, _, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/"); ok && r.Method == http.MethodGet {
		g.mu.Lock()
		g.pulled = append(g.pulled, image)
		g.mu.Unlock()
	}
	g.registry.ServeHTTP(w, r)
}

func (g *guarded) took() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := slices.Compact(slices.Sorted(slices.Values(g.pulled)))
	g.pulled = nil
	return out
}

// marked is an image of its own: busybox, with its name in the environment.
func marked(t *testing.T, text string) v1.Image {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install the Debian package busybox-static (scripts/setup test)", err)
	}
	im := busyImage(t, busybox)
	c, err := im.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.Config.Env = append(c.Config.Env, "MARK="+text)
	if im, err = mutate.ConfigFile(im, c); err != nil {
		t.Fatal(err)
	}
	return im
}

// push puts an image into a registry, without its guard.
func push(t *testing.T, h http.Handler, image string, im v1.Image) {
	t.Helper()
	s := httptest.NewServer(h)
	defer s.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://")+"/"+image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, im); err != nil {
		t.Fatal(err)
	}
}

// newGuarded is a registry with images.
func newGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{registry: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	for _, image := range []string{"private/box", "private/web", "private/other", "private/refused", "public/tool"} {
		push(t, g.registry, image+":1", marked(t, image))
	}
	return g
}

// TestEnginePulls has a job in a real machine pull over its own network, which allows it that host alone, by a name, with
// TLS and a certificate authority of its own, with and without a login.
func TestEnginePulls(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine and starts containers in it")
	}
	w := networktest.New(t, network.Config{})
	w.Name("registry.example.com", networktest.Web)
	g := newGuarded(t)
	hub := httptest.NewUnstartedServer(g)
	hub.Listener.Close()
	hub.Listener = w.Listen(5443)
	hub.StartTLS()
	defer hub.Close()

	machine, m := fullMachineIn(t, w.Pool)
	if err := machine.(vm.Networked).SetEgress("engine", vm.Egress{Mode: vm.EgressAllow, Allow: []string{"registry.example.com:5443"},
		Denied: func(d vm.Denial) { t.Logf("network: %s", d) }}); err != nil {
		t.Fatal(err)
	}
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hub.Certificate().Raw})
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	tw.WriteHeader(&tar.Header{Name: "ca.crt", Mode: 0o644, Size: int64(len(authority))})
	tw.Write(authority)
	tw.Close()
	if err := m.Put(t.Context(), "/etc/containers/certs.d/registry.example.com:5443", &archive); err != nil {
		t.Fatal(err)
	}
	s := engineScenario(t, &txtar.Archive{Files: []txtar.File{{Name: "workflow.yml", Data: []byte(`on: push
jobs:
  j:
    runs-on: ubuntu-latest
    container:
      image: registry.example.com:5443/private/box:1
      credentials: {username: robot, password: "${{ secrets.PASSWORD }}"}
    services:
      web:
        image: registry.example.com:5443/private/web:1
        credentials: {username: robot, password: "${{ secrets.PASSWORD }}"}
        command: sh -c "mkdir /tmp/www; echo served by $MARK > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www"
    steps:
      - run: echo "in $MARK"; wget -qO- http://web/
      - uses: docker://registry.example.com:5443/public/tool:1
        with: {args: sh -c "echo action in $MARK"}
`)}}}, m)
	s.job.Secrets["PASSWORD"] = registryPassword
	said := s.show(runner.Run(s.ctx, s.config, s.job))
	for _, want := range []string{"success ", "in private/box\n", "served by private/web\n", "action in public/tool\n"} {
		if !strings.Contains(said, want) {
			t.Errorf("the log has no %q", want)
		}
	}
	if strings.Contains(said, registryPassword) {
		t.Error("the password is in the log")
	}
	if got, want := g.took(), []string{"private/box", "private/web", "public/tool"}; !slices.Equal(got, want) {
		t.Errorf("pulled %q, want %q", got, want)
	}
	checkClean(t, m)
	if left := inMachine(t, m, "ls /root/.docker /run/containers/*/auth.json /root/.config/containers/auth.json 2>/dev/null; true"); left != "" {
		t.Errorf("a login was left behind: %s", left)
	}
	if t.Failed() {
		t.Log(said)
	}
}
