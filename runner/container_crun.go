package runner

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/terraphim/tgr/guest"
)

// crun is the runtime that podman starts containers with. It starts a process in a container in a tenth of the time that
// podman takes, most of which is for podman's own start; under software emulation those are seconds for every step.
const (
	crun     = "crun"
	crunRoot = "/run/crun" // where crun has the state of podman's containers
)

// ociProcess is the process of a container as its runtime is told of it: user, capabilities, limits. Only what differs
// for another process of the container is read.
// https://github.com/opencontainers/runtime-spec/blob/main/config.md#process
type ociProcess map[string]json.RawMessage

// parseOCIProcess reads a container's config.json; nil: it is none.
func parseOCIProcess(config []byte) ociProcess {
	var c struct{ Process ociProcess }
	if json.Unmarshal(config, &c) != nil {
		return nil
	}
	return c.Process
}

// with describes another process: its environment goes over that of the container.
func (p ociProcess) with(args []string, dir string, env []string) ([]byte, error) {
	out := ociProcess{}
	for k, v := range p {
		out[k] = v
	}
	var base []string
	if err := json.Unmarshal(p["env"], &base); err != nil && len(p["env"]) > 0 {
		return nil, fmt.Errorf("the environment of the container: %w", err)
	}
	set := map[string]bool{}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		set[name] = true
	}
	all := append([]string{}, env...)
	for _, kv := range base {
		if name, _, _ := strings.Cut(kv, "="); !set[name] {
			all = append(all, kv)
		}
	}
	delete(out, "consoleSize")
	for key, value := range map[string]any{"args": args, "cwd": dir, "env": all, "terminal": false} {
		data, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		out[key] = data
	}
	return json.Marshal(out)
}

// command is what starts a process in the container: by the runtime where that can be told, otherwise by the engine. The
// runtime reads its orders from standard input, so that no environment is left in a file; the process finds it at its end.
func (b *box) command(line []string, dir string, env []string) (guest.Cmd, error) {
	if b.proc == nil {
		flags, own := envFlags(env)
		args := append([]string{"exec", "--workdir", dir}, flags...)
		return b.engine.cmd(own, append(append(args, b.id), line...)...), nil
	}
	orders, err := b.proc.with(line, dir, env)
	if err != nil {
		return guest.Cmd{}, userError("%v", err)
	}
	return guest.Cmd{
		Args: []string{crun, "--root", crunRoot, "exec", "--process", "/dev/stdin", b.id}, Dir: "/",
		Env: b.engine.env(nil), Grace: b.engine.run.config.Limits.Grace, Stdin: bytes.NewReader(orders),
	}, nil
}
