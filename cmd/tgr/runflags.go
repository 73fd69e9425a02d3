package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/workflow"
)

// check refuses what no run could make sense of.
func (f runFlags) check() error {
	if info, err := os.Stat(f.dir); err != nil {
		return fmt.Errorf("-C: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("-C %s: not a directory", f.dir)
	}
	for _, list := range []struct {
		flag, sep, want string
		values          []string
	}{
		{"--env", "=", "NAME=value", f.env}, {"--var", "=", "NAME=value", f.vars},
		{"--input", "=", "name=value", f.inputs}, {"--matrix", ":", "key:value", f.matrix},
	} {
		for _, v := range list.values {
			if i := strings.Index(v, list.sep); i < 1 {
				return fmt.Errorf("%s %s: expected %s", list.flag, v, list.want)
			}
		}
	}
	if !slices.Contains(isolations(), f.isolation) {
		return fmt.Errorf("--isolation %s: expected %s", f.isolation, strings.Join(isolations(), ", "))
	}
	if !slices.Contains([]string{"auto", "slots", "none", "user"}, f.network) {
		return fmt.Errorf("--network %s: expected auto, slots, none or user", f.network)
	}
	if f.parallel < 1 {
		return fmt.Errorf("--parallel %d: expected at least 1", f.parallel)
	}
	return nil
}

// wanted are the combinations that --matrix asks for. It is safe for concurrent use.
type wanted struct {
	values []string // key:value

	mu  sync.Mutex
	met map[string]bool // values that a combination had
}

func newWanted(values []string) *wanted { return &wanted{values: values, met: map[string]bool{}} }

// keep says whether a combination is wanted: it has, of the keys that are asked for, those values. Of several values
// of one key, any will do.
func (w *wanted) keep(in workflow.Instance) bool {
	if len(w.values) == 0 || len(in.Matrix) == 0 {
		return true
	}
	combo, err := expr.FromJSON(in.Matrix)
	if err != nil || combo.Object() == nil {
		return true
	}
	asked, had := map[string]bool{}, map[string]bool{}
	var met []string
	for _, kv := range w.values {
		k, want, _ := strings.Cut(kv, ":")
		have, ok, err := combo.Object().Get(k)
		if err != nil || !ok {
			continue
		}
		text := have.Text()
		if have.Kind() == expr.KindObject || have.Kind() == expr.KindArray {
			text = have.JSON()
		}
		asked[k] = true
		if text == want {
			had[k] = true
			met = append(met, kv)
		}
	}
	if len(had) < len(asked) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, kv := range met {
		w.met[kv] = true
	}
	return true
}

// unmet is an error if there was something that no combination had.
func (w *wanted) unmet() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, kv := range w.values {
		if !w.met[kv] {
			return fmt.Errorf("--matrix %s: no combination has that", kv)
		}
	}
	return nil
}

// edit narrows a plan to one job and what it needs, and adds the environment of the command line.
func (f runFlags) edit(p *workflow.Plan) error {
	for _, kv := range f.env {
		k, v, _ := strings.Cut(kv, "=")
		p.Env = append(slices.DeleteFunc(p.Env, func(e workflow.EnvVar) bool { return e.Name == k }), workflow.EnvVar{Name: k, Value: v})
	}
	if f.job == "" {
		return nil
	}
	if p.Job(f.job) == nil {
		var keys []string
		for _, j := range p.Jobs {
			keys = append(keys, j.Key)
		}
		return fmt.Errorf("it has no job '%s', only %s", f.job, strings.Join(keys, ", "))
	}
	wanted := map[string]bool{}
	var want func(key string)
	want = func(key string) {
		if j := p.Job(key); j != nil && !wanted[key] {
			wanted[key] = true
			for _, need := range j.Needs {
				want(need)
			}
		}
	}
	want(f.job)
	p.Jobs = slices.DeleteFunc(p.Jobs, func(j workflow.Job) bool { return !wanted[j.Key] })
	return nil
}

// localSecrets are the secrets and variables of the command line.
func localSecrets(f runFlags) (secrets, vars map[string]string, err error) {
	secrets, vars = map[string]string{}, map[string]string{}
	for _, s := range f.secrets {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				return nil, nil, fmt.Errorf("--secret %s: there is no variable of that name, and no value was given", k)
			}
		}
		secrets[k] = v
	}
	for _, s := range f.vars {
		k, v, _ := strings.Cut(s, "=")
		vars[k] = v
	}
	return secrets, vars, nil
}

// flagVault is the secrets and variables of the command line. Who runs a workflow by hand has approved of it.
type flagVault struct{ secrets, vars map[string]string }

// Secrets implements dispatch.Vault.
func (v flagVault) Secrets(_ context.Context, _ tgr.Run, environment string) (map[string]string, error) {
	if environment != "" {
		return nil, nil
	}
	return v.secrets, nil
}

// Variables implements dispatch.Vault.
func (v flagVault) Variables(_ context.Context, _ tgr.Run, environment string) (map[string]string, error) {
	if environment != "" {
		return nil, nil
	}
	return v.vars, nil
}

// Environment implements dispatch.Vault.
func (flagVault) Environment(_ context.Context, _ tgr.Run, name string) (tgr.Environment, error) {
	return tgr.Environment{Name: name}, nil
}

// flagToken gives every job the token of the command line.
func flagToken(secrets map[string]string) dispatch.Tokens {
	return func(context.Context, dispatch.TokenRequest) (dispatch.Token, error) {
		return dispatch.Token{Value: secrets["GITHUB_TOKEN"]}, nil
	}
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
