package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/workflow"
)

// container is a container of the job, the job's own or a service: what the workflow says of it, evaluated.
type container struct {
	name       string // of the service; "" of the job's own
	image      string
	user       string
	password   string
	env        []pair
	ports      []string
	volumes    []string
	options    []string
	entrypoint string
	command    []string

	id     string // once it runs
	logged bool   // its log has been shown
	now    inspected
}

// what names the container in messages.
func (c *container) what() string {
	if c.name == "" {
		return "container '" + excerpt(c.image) + "'"
	}
	return "service '" + excerpt(c.name) + "'"
}

// maxServices bounds what one job may ask for.
const maxServices = 100

// containers are those of a job.
type containers struct {
	job      *container // nil: steps run on the machine
	services []*container
	rec      *record // "Initialize containers"
}

// wantContainers evaluates what containers the job asks for. An image that evaluates to nothing asks for none.
func (r *run) wantContainers() error {
	job := r.job.Job
	if job.Container != nil {
		c, err := r.containerOf("", *job.Container)
		if err != nil {
			return err
		}
		r.boxes.job = c
	}
	for _, s := range job.Services {
		c, err := r.containerOf(s.Name, s.Container)
		if err != nil {
			return err
		}
		if c != nil {
			r.boxes.services = append(r.boxes.services, c)
		}
	}
	if job.ServicesExpr != "" {
		v, err := r.eval(job.ServicesExpr, r.top, nil, job.Pos, "services")
		if err != nil {
			return err
		}
		if err := r.servicesOf(v); err != nil {
			return err
		}
	}
	if len(r.boxes.services) > maxServices {
		return workflowError(r.job.Plan.File, job.Pos, "job '%s' asks for %d services; at most %d are allowed", job.Key, len(r.boxes.services), maxServices)
	}
	all := r.allBoxes()
	if len(all) == 0 {
		return nil
	}
	_, err := r.needEngine(job.Pos, r.job.Plan.File, fmt.Sprintf("job '%s' asks for %s", job.Key, all[0].what()))
	return err
}

// allBoxes are the containers of the job in the order in which they start.
func (r *run) allBoxes() []*container {
	if r.boxes.job == nil {
		return r.boxes.services
	}
	return append([]*container{r.boxes.job}, r.boxes.services...)
}

// servicesOf reads services that an expression gave.
func (r *run) servicesOf(v expr.Value) error {
	if v.Object() == nil {
		if v.Text() == "" {
			return nil
		}
		return workflowError(r.job.Plan.File, r.job.Job.Pos, "services: '%s' is no mapping", excerpt(v.Text()))
	}
	for _, name := range v.Object().Keys() {
		one, _, err := v.Object().Get(name)
		if err != nil {
			return err
		}
		c, err := r.containerFrom(name, one)
		if err != nil {
			return err
		}
		if c != nil {
			r.boxes.services = append(r.boxes.services, c)
		}
	}
	return nil
}

// containerOf evaluates one container of the plan; nil: it has no image, and is not wanted.
func (r *run) containerOf(name string, w workflow.Container) (*container, error) {
	key := "container"
	if name != "" {
		key = "services." + name
	}
	if w.Expr != "" {
		v, err := r.eval(w.Expr, r.top, nil, r.job.Job.Pos, key)
		if err != nil {
			return nil, err
		}
		return r.containerFrom(name, v)
	}
	raw := rawContainer{}
	var err error
	text := func(src, field string) string {
		if err != nil {
			return ""
		}
		var s string
		s, err = r.text(src, r.top, nil, r.job.Job.Pos, key+"."+field)
		return s
	}
	texts := func(list []string, field string) (out []string) {
		for _, src := range list {
			if s := text(src, field); s != "" {
				out = append(out, s)
			}
		}
		return out
	}
	raw.image, raw.options = text(w.Image, "image"), text(w.Options, "options")
	raw.entrypoint, raw.command = text(w.Entrypoint, "entrypoint"), text(w.Command, "command")
	raw.ports, raw.volumes = texts(w.Ports, "ports"), texts(w.Volumes, "volumes")
	if w.Credentials != nil {
		raw.user, raw.password = text(w.Credentials.Username, "credentials.username"), text(w.Credentials.Password, "credentials.password")
	}
	if err != nil {
		return nil, err
	}
	if raw.env, err = r.evalPairs(key+".env", w.Env, r.top, nil, r.job.Job.Pos); err != nil {
		return nil, err
	}
	return r.checked(name, raw)
}

// rawContainer is a container's fields as texts.
type rawContainer struct {
	image, options, entrypoint, command, user, password string
	env                                                 []pair
	ports, volumes                                      []string
}

// containerFrom reads a container that an expression gave: an image, or a mapping.
func (r *run) containerFrom(name string, v expr.Value) (*container, error) {
	o := v.Object()
	if o == nil {
		return r.checked(name, rawContainer{image: v.Text()})
	}
	var err error
	get := func(o *expr.Object, key string) expr.Value {
		var v expr.Value
		if err == nil && o != nil {
			v, _, err = o.Get(key)
		}
		return v
	}
	texts := func(v expr.Value) (out []string) {
		for _, item := range v.Items() {
			out = append(out, item.Text())
		}
		return out
	}
	login := get(o, "credentials").Object()
	raw := rawContainer{
		image: get(o, "image").Text(), options: get(o, "options").Text(),
		entrypoint: get(o, "entrypoint").Text(), command: get(o, "command").Text(),
		user: get(login, "username").Text(), password: get(login, "password").Text(),
		ports: texts(get(o, "ports")), volumes: texts(get(o, "volumes")),
	}
	if env := get(o, "env").Object(); env != nil {
		for _, k := range env.Keys() {
			raw.env = append(raw.env, pair{k, get(env, k).Text()})
		}
	}
	if err != nil {
		return nil, err
	}
	return r.checked(name, raw)
}

// checked refuses what no engine may be told, and splits the options.
func (r *run) checked(name string, raw rawContainer) (*container, error) {
	image := strings.TrimPrefix(strings.TrimSpace(raw.image), "docker://")
	if image == "" {
		return nil, nil
	}
	c := &container{
		name: name, image: image, user: raw.user, password: raw.password, env: raw.env, ports: raw.ports, volumes: raw.volumes,
		options: splitArgs(raw.options), entrypoint: raw.entrypoint, command: splitArgs(raw.command),
	}
	bad := func(format string, args ...any) (*container, error) {
		return nil, workflowError(r.job.Plan.File, r.job.Job.Pos, c.what()+": "+format, args...)
	}
	for _, value := range slices.Concat([]string{image}, c.ports, c.volumes) {
		if strings.HasPrefix(value, "-") || strings.ContainsAny(value, "\x00\n") {
			return bad("'%s' is no image, port or volume", excerpt(value))
		}
	}
	for _, o := range c.options {
		flag, _, _ := strings.Cut(o, "=")
		switch flag {
		case "--network", "--net", "--entrypoint":
			return bad("options: %s is not supported", flag)
		case "--name", "--detach", "-d", "--rm", "--cidfile", "--pidfile", "--label-file", "--conmon-pidfile":
			return bad("options: %s is the runner's to say", flag)
		}
	}
	for _, p := range c.env {
		if err := checkVar(p.Name, p.Value); err != nil {
			return bad("env: %v", err)
		}
	}
	return c, r.addMask(c.password)
}

// inContainers runs every step, once the job's containers are there. Where they cannot be started, no step runs.
func (r *run) inContainers(units []*unit) error {
	if len(r.allBoxes()) == 0 {
		return r.allSteps(units)
	}
	rec := r.boxes.rec
	r.begin(rec)
	err := r.startContainers()
	outcome, reason := tgr.Success, ""
	switch {
	case err == nil:
		r.end(rec, ended(outcome, ""))
		return r.allSteps(units)
	case isOurs(err):
		r.end(rec, ended(tgr.Failure, err.Error()))
		return err
	case errors.Is(err, errCancelled):
		outcome, reason = tgr.Cancelled, r.clock.reason(r.config.Runner.Name)
	default:
		outcome, reason = tgr.Failure, err.Error()
		r.error(rec, reason)
		r.blame(blameOf(err), reason)
		r.status = tgr.Failure
	}
	r.end(rec, ended(outcome, reason))
	for _, rec := range r.steps {
		if rec.Status == tgr.Pending {
			r.end(rec, ended(tgr.Skipped, ""))
		}
	}
	return nil
}

// startContainers starts the containers of the job and waits until its services are ready.
func (r *run) startContainers() error {
	rec := r.boxes.rec
	limit, free := r.clock.limit(r.clock.hard, 0)
	defer free()
	ctx, done := r.clock.cancellable(limit, false)
	defer done()
	err := r.startServices(ctx, rec)
	if c := r.boxes.job; err == nil && c != nil {
		if err = r.startContainer(ctx, rec, c); err == nil {
			err = r.enterContainer(ctx, c)
		}
	}
	if err != nil && ctx.Err() != nil && !isOurs(err) {
		err = interrupted(ctx)
	}
	return err
}

// startServices starts the services in a network of their own, and waits until they are ready.
func (r *run) startServices(ctx context.Context, rec *record) error {
	e := r.engine
	if len(r.boxes.services) == 0 {
		return nil
	}
	name := e.unique("network")
	if err := e.show(ctx, rec, e.cmd(nil, "network", "create", "--label", "tgr", name)); err != nil {
		return err
	}
	e.net = name
	for _, c := range r.boxes.services {
		if err := r.startContainer(ctx, rec, c); err != nil {
			return err
		}
	}
	if err := e.awaitServices(ctx, rec, r.boxes.services); err != nil {
		return err
	}
	for _, c := range r.boxes.services {
		if at := c.now.NetworkSettings.Networks[e.net].IPAddress; at != "" {
			e.hosts = append(e.hosts, "--add-host", c.name+":"+at)
		}
	}
	return nil
}

// stopContainers removes what startContainers made. Of a job that failed, it shows what the services said.
func (r *run) stopContainers() {
	e := r.engine
	started := func(c *container) bool { return c.id != "" }
	if e == nil || e.net == "" && !slices.ContainsFunc(r.allBoxes(), started) {
		return
	}
	rec := r.add(tgr.Step{ID: "__stop_containers", Name: "Stop containers"})
	r.begin(rec)
	var ids []string
	for _, c := range r.allBoxes() {
		if !started(c) {
			continue
		}
		ids = append(ids, c.id)
		if c.name != "" && !c.logged && r.status == tgr.Failure && r.clock.hard.Err() == nil {
			e.showLogs(r.clock.hard, rec, c)
		}
	}
	if len(ids) > 0 {
		e.remove(ids...)
	}
	r.log(rec, fmt.Sprintf("Removed %d containers", len(ids)))
	if e.net != "" {
		e.tidy(e.cmd(nil, "network", "rm", e.net))
		r.log(rec, "Removed the network "+e.net)
	}
	e.net = ""
	r.end(rec, ended(tgr.Success, ""))
}

// network is the network of what the job's steps run in: the machine's own, as it is for steps without a container. So
// they reach what the machine offers on its loopback, the cache and artifact services among it, and services by their names.
func (e *engine) network() []string { return append([]string{"--network", "host"}, e.hosts...) }

// runArgs are the arguments that start a container of the job.
func (e *engine) runArgs(c *container) (args, own []string) {
	args = []string{"run", "--detach", "--label", "tgr"}
	if c.name == "" {
		args = append(append(args, "--name", e.unique("job")), e.network()...)
	} else {
		args = append(args, "--name", e.unique(c.name), "--network", e.net, "--network-alias", c.name)
	}
	for _, p := range c.ports {
		args = append(args, "-p", p)
	}
	args = append(args, c.options...)
	env := []string{"GITHUB_ACTIONS=true", "CI=true"}
	for _, p := range c.env {
		env = append(env, p.Name+"="+p.Value)
	}
	if c.name == "" {
		env = append(env, "HOME=/github/home")
	}
	flags, own := envFlags(env)
	args = append(args, flags...)
	for _, v := range c.volumes {
		args = append(args, "-v", v)
	}
	if c.name == "" {
		args = append(args, "--workdir", e.run.jobMounts().inside(e.run.config.Dirs.Workspace), "--entrypoint", "tail")
		for _, m := range e.run.boxMounts() {
			args = append(args, "-v", m.flag())
		}
		args = e.withSocket(args)
		return append(args, c.image, "-f", "/dev/null"), own
	}
	if c.entrypoint != "" {
		args = append(args, "--entrypoint", c.entrypoint)
	}
	return append(append(args, c.image), c.command...), own
}

// boxMounts are the mounts of the job's container: those whose paths are translated, and the C library of the machine
// for a container that has none, or another.
func (r *run) boxMounts() mounts {
	ms := r.jobMounts()
	if r.engine.libc != "" {
		ms = append(ms, mount{r.engine.libc, libcInside, true})
	}
	return ms
}

// libcInside is where the job's container sees the machine's C library.
const libcInside = "/__e/libc"

// context is what the job context says of a container.
func (c *container) context(net string) *expr.Object {
	o := expr.NewObject().Set("id", expr.Str(c.id)).Set("network", expr.Str(net))
	if c.name == "" {
		return o
	}
	ports := expr.NewObject()
	keys := make([]string, 0, len(c.now.NetworkSettings.Ports))
	for k := range c.now.NetworkSettings.Ports {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		inside, _, _ := strings.Cut(k, "/")
		if at := c.now.NetworkSettings.Ports[k]; len(at) > 0 && !ports.Has(inside) {
			ports.Set(inside, expr.Str(at[0].HostPort))
		}
	}
	return o.Set("ports", expr.Obj(ports))
}

// addContainers adds the job's containers to the job context.
func (r *run) addContainers(o *expr.Object) {
	if c := r.boxes.job; c != nil && c.id != "" {
		o.Set("container", expr.Obj(c.context("host")))
	}
	services := expr.NewObject()
	for _, c := range r.boxes.services {
		if c.id != "" {
			services.Set(c.name, expr.Obj(c.context(r.engine.net)))
		}
	}
	if services.Len() > 0 {
		o.Set("services", expr.Obj(services))
	}
}
