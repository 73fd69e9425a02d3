package runner

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOCIProcess(t *testing.T) {
	const config = `{"ociVersion":"1.0.2","process":{"terminal":true,"consoleSize":{"height":1,"width":2},"user":{"uid":7,"gid":8},
		"args":["tail"],"env":["PATH=/bin","A=image","B=image"],"cwd":"/","capabilities":{"bounding":["CAP_CHOWN"]},"noNewPrivileges":true}}`
	p := parseOCIProcess([]byte(config))
	data, err := p.with([]string{"sh", "-e", "x y"}, "/__w/app/app", []string{"A=step", "C=a=b"})
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	json.Unmarshal([]byte(`{"terminal":false,"user":{"uid":7,"gid":8},"args":["sh","-e","x y"],"env":["A=step","C=a=b","PATH=/bin","B=image"],
		"cwd":"/__w/app/app","capabilities":{"bounding":["CAP_CHOWN"]},"noNewPrivileges":true}`), &want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if string(p["args"]) != `["tail"]` {
		t.Errorf("the container's own process became %s", p["args"])
	}
	for _, config := range []string{"", "[]", "{}", `{"process":7}`, `{"process":null}`} {
		if p := parseOCIProcess([]byte(config)); p != nil {
			t.Errorf("%q was read as %v", config, p)
		}
	}
	if _, err := parseOCIProcess([]byte(`{"process":{"env":7}}`)).with(nil, "/", nil); err == nil {
		t.Error("an environment that is a number was taken")
	}
}

// TestExecCommand holds the two ways into a container, and that neither shows a secret on a command line.
func TestExecCommand(t *testing.T) {
	r := boxed(t)
	b := &box{engine: r.engine, id: "abc", mounts: r.boxMounts()}
	env := []string{"TOKEN=secret", "PATH=/bin"}
	cmd, err := b.command([]string{"sh", "x"}, "/__w", env)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"podman", "exec", "--workdir", "/__w", "-e", "TOKEN", "-e", "PATH=/bin", "abc", "sh", "x"}, cmd.Args); diff != "" {
		t.Errorf("the engine (-want +got):\n%s", diff)
	}
	if !strings.Contains(strings.Join(cmd.Env, "\n"), "\nTOKEN=secret") {
		t.Errorf("the engine's environment has no TOKEN: %q", cmd.Env)
	}
	b.proc = ociProcess{"env": json.RawMessage(`["A=1"]`)}
	if cmd, err = b.command([]string{"sh", "x"}, "/__w", env); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"crun", "--root", "/run/crun", "exec", "--process", "/dev/stdin", "abc"}, cmd.Args); diff != "" {
		t.Errorf("the runtime (-want +got):\n%s", diff)
	}
	if strings.Contains(strings.Join(cmd.Env, "\n"), "secret") {
		t.Errorf("the runtime's environment: %q", cmd.Env)
	}
}

// FuzzOCIProcess reads what a hostile machine may say its container is.
func FuzzOCIProcess(f *testing.F) {
	f.Add([]byte(`{"process":{"env":["A=1"],"args":["x"]}}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		p := parseOCIProcess(config)
		if p == nil {
			return
		}
		if out, err := p.with([]string{"sh"}, "/", []string{"A=2"}); err == nil && parseOCIProcess([]byte(`{"process":`+string(out)+`}`)) == nil {
			t.Errorf("%s cannot be read", out)
		}
	})
}
