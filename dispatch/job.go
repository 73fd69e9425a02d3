package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/workflow"
)

// jobOf puts together what the runner has to know of a job. Its token is to be revoked when the job has ended.
func (d *Dispatcher) jobOf(ctx context.Context, l *Lease) (job runner.Job, token Token, err error) {
	p, err := d.plans.get(l.Run)
	if err != nil {
		return job, token, err
	}
	var in settled
	if err := json.Unmarshal(l.Job.Instance, &in); err != nil {
		return job, token, tgr.Errorf("job.start", tgr.Internal, "instance of job %d: %w", l.Job.ID, err)
	}
	permissions, err := permissionsOf(p, in)
	if err != nil {
		return job, token, err
	}
	trusted := Trusted(l.Run.Event)
	token, err = d.c.Tokens(ctx, TokenRequest{Repo: l.Run.Event.Repo, Permissions: permissions, ReadOnly: !trusted})
	if err != nil {
		return job, token, err
	}
	if job, err = d.withToken(ctx, l, p, in, token.Value); err != nil {
		d.revoke(ctx, token, d.c.Log)
	}
	return job, token, err
}

// withToken is the job once its token is known, which may be among what callers pass on.
func (d *Dispatcher) withToken(ctx context.Context, l *Lease, p *workflow.Plan, in settled, token string) (runner.Job, error) {
	own, vars, err := d.settings(ctx, l.Run, "")
	if err != nil {
		return runner.Job{}, err
	}
	if token != "" {
		replace(own, tokenSecret, token)
	}
	l.Run.WorkflowName = p.Name // ours may say more
	github := d.githubContext(l.Run, token)
	payload := payloadOf(l.Run.Event, p)
	f := &frame{plan: p, scope: &workflow.Scope{GitHub: github, Vars: vars, Secrets: own, Inputs: p.Inputs}}
	if len(in.Calls) > 0 {
		f.scope.GitHub = withEvent(maps.Clone(github), payload)
	}
	file, sha := "", ""
	for _, c := range in.Calls {
		called := f.plan.Job(c.Job)
		if f, err = f.enter(c); err != nil {
			return runner.Job{}, err
		}
		file, sha = identity(called.Call, l.Run.Event)
	}
	j := f.plan.Job(in.Key)
	if j == nil {
		return runner.Job{}, tgr.Errorf("job.start", tgr.Internal, "the plan of run %d has no job %q", l.Run.ID, l.Job.Key)
	}
	secrets := f.scope.Secrets
	if in.Environment != "" {
		envSecrets, envVars, err := d.settings(ctx, l.Run, in.Environment)
		if err != nil {
			return runner.Job{}, err
		}
		secrets, vars = maps.Clone(secrets), maps.Clone(vars)
		for name, v := range envSecrets {
			replace(secrets, name, v)
		}
		for name, v := range envVars {
			replace(vars, name, v)
		}
	}
	if stated, err := permissionsOf(p, in); err != nil {
		return runner.Job{}, err
	} else if len(stated) > 1 {
		narrowed := *j
		narrowed.Permissions = narrow(stated)
		j = &narrowed
	}
	in.Instance = d.bounded(d.learnt(l, j, in.Instance))
	return runner.Job{
		Plan: f.plan, Job: j, Instance: in.Instance, GitHub: github, Event: payload,
		Vars: vars, Secrets: secrets, Needs: in.Needs, Inputs: f.scope.Inputs, Token: token,
		WorkflowRef: file, WorkflowSHA: sha, CheckRun: d.c.CheckRun(ctx, l.Job.ID),
	}, nil
}

// settings are the secrets and variables of a run, or of an environment of it. They are the caller's to change.
func (d *Dispatcher) settings(ctx context.Context, run tgr.Run, environment string) (secrets, vars map[string]string, err error) {
	secrets = map[string]string{}
	if Trusted(run.Event) {
		got, err := d.c.Vault.Secrets(ctx, run, environment)
		if err != nil {
			return nil, nil, fmt.Errorf("read the secrets: %w", err)
		}
		maps.Copy(secrets, got)
	}
	vars = map[string]string{}
	got, err := d.c.Vault.Variables(ctx, run, environment)
	if err != nil {
		return nil, nil, fmt.Errorf("read the variables: %w", err)
	}
	maps.Copy(vars, got)
	return secrets, vars, nil
}

// replace sets a name that does not differ by case.
func replace(m map[string]string, name, value string) {
	for k := range m {
		if strings.EqualFold(k, name) {
			delete(m, k)
		}
	}
	m[name] = value
}

// permissionsOf is what is stated by each job on the way to one, from the top, and by itself.
func permissionsOf(p *workflow.Plan, in settled) ([]workflow.Permissions, error) {
	var out []workflow.Permissions
	for _, key := range append(keysOf(in.Calls), in.Key) {
		j := p.Job(key)
		if j == nil {
			return nil, tgr.Errorf("job.start", tgr.Internal, "%s has no job %q", p.File, key)
		}
		stated := j.Permissions
		if stated == nil {
			stated = p.Permissions
		}
		out = append(out, stated)
		if j.Call != nil {
			p = j.Call.Plan
		}
	}
	return out, nil
}

// narrow is what a job of a called workflow may do: no more than each job that calls allows. Where one states nothing, the
// default counts, which is known to whoever makes tokens; but never holds identity tokens.
func narrow(stated []workflow.Permissions) workflow.Permissions {
	out := maps.Clone(stated[len(stated)-1])
	for _, above := range stated[:len(stated)-1] {
		for scope, level := range out {
			switch allowed := above[scope]; {
			case above == nil && scope == "id-token", above != nil && allowed == "":
				delete(out, scope)
			case above != nil && allowed == "read" && level == "write":
				out[scope] = allowed
			}
		}
	}
	return out
}

func keysOf(calls []call) []string {
	var out []string
	for _, c := range calls {
		out = append(out, c.Job)
	}
	return out
}

// revoke ends a token's life, when nothing more can be done about an error than to log it: it expires.
func (d *Dispatcher) revoke(ctx context.Context, t Token, log *slog.Logger) {
	if t.Revoke == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := t.Revoke(ctx); err != nil {
		log.Warn("revoke a job's token: it expires by itself", "error", err)
	}
}

// blameOf is whose fault it is that a job could not begin; "" without an error.
func blameOf(err error) tgr.Blame {
	var wrong *workflow.EvalError
	if errors.As(err, &wrong) {
		return tgr.BlameWorkflow
	}
	return tgr.BlameOf(err)
}

// bounded gives a job, and its winding up, no more time than the server allows.
func (d *Dispatcher) bounded(in workflow.Instance) workflow.Instance {
	in.TimeoutMinutes, in.CancelTimeout = min(in.TimeoutMinutes, d.c.Most.Minutes()), min(in.CancelTimeout, d.c.Most.Minutes())
	return in
}

// shortened warns of a time-out that the workflow states and that is more than the server allows; "" of any other.
func (d *Dispatcher) shortened(l *Lease, job runner.Job) string {
	var stated settled
	if job.Job.TimeoutMinutes == "" || json.Unmarshal(l.Job.Instance, &stated) != nil || stated.TimeoutMinutes <= job.Instance.TimeoutMinutes {
		return ""
	}
	return fmt.Sprintf("timeout-minutes of this job is %g, and this server allows no more than %g", stated.TimeoutMinutes, job.Instance.TimeoutMinutes)
}

// learnt gives a job whose workflow states no time-out the one that its durations suggest, if there is one and it is shorter.
func (d *Dispatcher) learnt(l *Lease, j *workflow.Job, in workflow.Instance) workflow.Instance {
	if d.c.Learn == nil || j.TimeoutMinutes != "" {
		return in
	}
	if t := d.c.Learn.Timeout(l.Run, l.Job); t > 0 && t.Minutes() < in.TimeoutMinutes {
		in.TimeoutMinutes = t.Minutes()
		d.c.Log.Info("time-out learnt from earlier runs", "run", l.Run.ID, "job", l.Job.ID, "timeout", t)
	}
	return in
}
