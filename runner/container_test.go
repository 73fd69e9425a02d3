package runner

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/workflow"
)

// boxed is a run whose directories are GitHub's, on a machine with an engine, outside of any container.
func boxed(t *testing.T) *run {
	t.Helper()
	u, _ := newTestUnit(t, Limits{})
	r := u.run
	r.config.Dirs = Dirs{Home: "/home/runner", Workspace: "/home/runner/work/app/app", Temp: "/home/runner/work/_temp",
		Tools: "/opt/hostedtoolcache", Actions: "/home/runner/work/_actions", Commands: "/home/runner/work/_temp/_runner_file_commands"}
	r.config.Nodes = map[string]string{"node16": "/opt/node20/bin/node", "node20": "/opt/node20/bin/node", "node24": "/opt/node24/bin/node", "node12": "/usr/bin/node"}
	r.engine = &engine{run: r, name: "podman", libc: findLibc, built: map[string]string{}}
	return r
}

func TestPathsInContainers(t *testing.T) {
	r := boxed(t)
	job := &box{mounts: r.boxMounts(), engine: r.engine}
	action := r.actionMounts()
	for _, c := range []struct{ machine, job, action string }{
		{"/home/runner/work/app/app", "/__w/app/app", "/github/workspace"},
		{"/home/runner/work/app/app/a/b.txt", "/__w/app/app/a/b.txt", "/github/workspace/a/b.txt"},
		{"/home/runner/work/app/apple", "/__w/app/apple", "/home/runner/work/app/apple"},
		{"/home/runner/work/app", "/__w/app", "/home/runner/work/app"},
		{"/home/runner/work/_temp", "/__w/_temp", "/github/runner_temp"},
		{"/home/runner/work/_temp/_runner_file_commands/3/set_env", "/__w/_temp/_runner_file_commands/3/set_env", "/github/file_commands/3/set_env"},
		{"/home/runner/work/_temp/_github_workflow/event.json", "/github/workflow/event.json", "/github/workflow/event.json"},
		{"/home/runner/work/_actions/o/r/v1", "/__w/_actions/o/r/v1", "/home/runner/work/_actions/o/r/v1"},
		{"/opt/hostedtoolcache/go", "/__t/go", "/opt/hostedtoolcache/go"},
		{"/opt/node20/bin/node", "/__e/node20/bin/node", "/opt/node20/bin/node"},
		{"/opt/node24/bin/node", "/__e/node24/bin/node", "/opt/node24/bin/node"},
		{"/usr/bin/node", "/usr/bin/node", "/usr/bin/node"}, // not mounted: /usr is more than a runtime
		{"/etc/passwd", "/etc/passwd", "/etc/passwd"},
		{"relative", "relative", "relative"},
		{"", "", ""},
	} {
		if got := job.inside(c.machine); got != c.job {
			t.Errorf("job: %q is seen as %q, want %q", c.machine, got, c.job)
		}
		if got := action.inside(c.machine); got != c.action {
			t.Errorf("action: %q is seen as %q, want %q", c.machine, got, c.action)
		}
		if got := job.outside(c.job); got != c.machine {
			t.Errorf("job: %q is %q on the machine, want %q", c.job, got, c.machine)
		}
		if got := action.outside(c.action); got != c.machine {
			t.Errorf("action: %q is %q on the machine, want %q", c.action, got, c.machine)
		}
		// What a container job hands to a docker action.
		within := append(r.actionMounts(), seenBy(job, r.actionMounts())...)
		if got := within.inside(c.job); c.action != c.machine && got != c.action {
			t.Errorf("action in a container job: %q is seen as %q, want %q", c.job, got, c.action)
		}
	}
}

func TestPatternsInContainers(t *testing.T) {
	r := boxed(t)
	patterns := []string{"**/go.sum\n!/__w/app/app/vendor/**", "/__w/app/app/x", "/etc/*"}
	if diff := cmp.Diff(patterns, r.onMachine(patterns)); diff != "" {
		t.Errorf("without a container (-want +got):\n%s", diff)
	}
	r.site = &box{mounts: r.boxMounts()}
	want := []string{"**/go.sum", "!/home/runner/work/app/app/vendor/**", "/home/runner/work/app/app/x", "/etc/*"}
	if diff := cmp.Diff(want, r.onMachine(patterns)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEnvFlags(t *testing.T) {
	flags, own := envFlags([]string{"A=1", "PATH=/bin", "LD_PRELOAD=/x.so", "http_proxy=http://p", "DOCKER_HOST=x", "TOKEN=s=e=c", "EMPTY=", "_TGR_EXEC=4"})
	want := []string{"-e", "A", "-e", "PATH=/bin", "-e", "LD_PRELOAD=/x.so", "-e", "http_proxy=http://p", "-e", "DOCKER_HOST=x", "-e", "TOKEN", "-e", "EMPTY", "-e", "_TGR_EXEC=4"}
	if diff := cmp.Diff(want, flags); diff != "" {
		t.Errorf("flags (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"A=1", "TOKEN=s=e=c", "EMPTY="}, own); diff != "" {
		t.Errorf("own (-want +got):\n%s", diff)
	}
}

func TestRegistryOf(t *testing.T) {
	for image, want := range map[string]string{
		"redis": "docker.io", "library/redis:7": "docker.io", "ghcr.io/o/i": "ghcr.io", "localhost/i": "localhost",
		"host:5000/i@sha256:00": "host:5000", "a.b": "docker.io",
	} {
		if got := registryOf(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

func TestHealth(t *testing.T) {
	check := &healthcheck{Test: []string{"CMD", "x"}, Interval: 2 * time.Second, Timeout: time.Second, StartPeriod: 10 * time.Second, Retries: 5}
	for _, c := range []struct {
		name    string
		running bool
		check   *healthcheck
		status  string
		since   time.Duration
		want    verdict
	}{
		{"no check", true, nil, "", 0, ready},
		{"no check, ended", false, nil, "", 0, broken},
		{"check turned off", true, &healthcheck{Test: []string{"NONE"}}, "", 0, ready},
		{"empty check", true, &healthcheck{}, "", 0, ready},
		{"healthy", true, check, "healthy", time.Hour, ready},
		{"healthy, ended", false, check, "healthy", 0, broken},
		{"starting", true, check, "starting", 20 * time.Second, starting},
		{"unhealthy too soon to tell", true, check, "unhealthy", 24 * time.Second, starting},
		{"unhealthy", true, check, "unhealthy", 26 * time.Second, broken},
		{"starting for ever", true, check, "starting", 26 * time.Second, broken},
		{"defaults are docker's", true, &healthcheck{Test: []string{"CMD", "x"}}, "unhealthy", 179 * time.Second, starting},
		{"defaults end", true, &healthcheck{Test: []string{"CMD", "x"}}, "unhealthy", 181 * time.Second, broken},
		{"absurd retries", true, &healthcheck{Test: []string{"CMD", "x"}, Retries: 1 << 60, Interval: 1 << 62}, "unhealthy", 100 * time.Hour, broken},
	} {
		i := inspected{}
		i.State.Running, i.State.Health.Status, i.Config.Healthcheck = c.running, c.status, c.check
		if got := health(i, c.since); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestContainerContext reads a description as podman gives it.
func TestContainerContext(t *testing.T) {
	i, err := parseInspected([]byte(`[{"Id":"abc","State":{"Running":true,"Pid":7,"Health":{"Status":"","FailingStreak":0,"Log":null}},
		"Config":{"Env":["PATH=/bin"],"Healthcheck":null},"NetworkSettings":{"Ports":{"90/udp":[{"HostIp":"","HostPort":"33000"}],"80/tcp":[{"HostIp":"","HostPort":"8080"},{"HostIp":"::","HostPort":"1"}],"80/udp":[{"HostPort":"2"}],"70/tcp":null},
		"Networks":{"n":{"IPAddress":"10.89.0.2"}}}}]`))
	if err != nil {
		t.Fatal(err)
	}
	c := &container{name: "web", id: i.ID, now: i}
	got := expr.Obj(c.context("n")).JSON()
	want := "{\n  \"id\": \"abc\",\n  \"network\": \"n\",\n  \"ports\": {\n    \"80\": \"8080\",\n    \"90\": \"33000\"\n  }\n}"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, bad := range []string{"", "[]", "{}", "[{},{}]", `[{"Id":7}]`} {
		if _, err := parseInspected([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestContainerOptions(t *testing.T) {
	r := boxed(t)
	r.job.Plan, r.job.Job = &workflow.Plan{File: "ci.yml"}, &workflow.Job{Key: "j"}
	c, err := r.checked("db", rawContainer{image: " docker://postgres:16 ", options: `--health-cmd "pg_isready -U postgres" --cpus=1`, command: `-c "a b"`})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"--health-cmd", "pg_isready -U postgres", "--cpus=1"}, c.options); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	args, own := r.engine.runArgs(c)
	if line := strings.Join(args, " "); !strings.HasSuffix(line, "--cpus=1 -e GITHUB_ACTIONS -e CI postgres:16 -c a b") || len(own) != 2 {
		t.Errorf("%s, with %q", line, own)
	}
	if c, err := r.checked("", rawContainer{image: " "}); c != nil || err != nil {
		t.Errorf("no image: %v, %v", c, err)
	}
	for _, c := range []struct {
		raw  rawContainer
		want string
	}{
		{rawContainer{image: "--privileged"}, "no image"},
		{rawContainer{image: "i", ports: []string{"-v/:/x"}}, "no image, port or volume"},
		{rawContainer{image: "i", volumes: []string{"-x"}}, "no image, port or volume"},
		{rawContainer{image: "i", options: "--network host"}, "--network is not supported"},
		{rawContainer{image: "i", options: "--net=host"}, "--net is not supported"},
		{rawContainer{image: "i", options: "--entrypoint=x"}, "--entrypoint is not supported"},
		{rawContainer{image: "i", options: "--cpus 1 --name x"}, "--name is the runner's to say"},
		{rawContainer{image: "i", env: []pair{{"A=B", "x"}}}, "a name that cannot be set"},
		{rawContainer{image: "i", env: []pair{{"A", "x\x00"}}}, "NUL"},
	} {
		if _, err := r.checked("s", c.raw); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want an error with %q", c.raw, err, c.want)
		}
	}
}

func TestContainerFromExpression(t *testing.T) {
	r := boxed(t)
	r.job.Plan, r.job.Job = &workflow.Plan{File: "ci.yml"}, &workflow.Job{Key: "j"}
	v, err := expr.FromJSON([]byte(`{"image":"db:1","env":{"A":1,"B":true},"ports":[5432,"80:80"],"volumes":["v:/v"],"credentials":{"username":"u","password":"hunter22"},"options":"--cpus 1"}`))
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.containerFrom("db", v)
	if err != nil {
		t.Fatal(err)
	}
	want := &container{name: "db", image: "db:1", user: "u", password: "hunter22", env: []pair{{"A", "1"}, {"B", "true"}},
		ports: []string{"5432", "80:80"}, volumes: []string{"v:/v"}, options: []string{"--cpus", "1"}}
	if diff := cmp.Diff(want, c, cmp.AllowUnexported(container{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := r.mask.mask("the password is hunter22"); strings.Contains(got, "hunter22") {
		t.Error("the password of a registry is shown")
	}
	all, err := expr.FromJSON([]byte(`{"one":{"image":"a"},"none":{"image":""},"two":"b"}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.servicesOf(all); err != nil || len(r.boxes.services) != 2 || r.boxes.services[1].image != "b" {
		t.Errorf("%v, %v", r.boxes.services, err)
	}
	if err := r.servicesOf(expr.Str("text")); err == nil {
		t.Error("a text was taken for services")
	}
}

// FuzzInspected reads what an engine of a hostile machine may say.
func FuzzInspected(f *testing.F) {
	f.Add([]byte(`[{"Id":"a","State":{"Running":true},"Config":{"Healthcheck":{"Test":["CMD"],"Retries":-1,"Interval":-5}},"NetworkSettings":{"Ports":{"80/tcp":[{"HostPort":"1"}]}}}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := parseInspected(data)
		if err != nil {
			return
		}
		health(i, time.Minute)
		c := &container{name: "s", now: i}
		if !json.Valid([]byte(expr.Obj(c.context("n")).JSON())) {
			t.Error("the context is no JSON")
		}
	})
}
