// Calls what Python deployed, through the client for Go, and prints what came of each part as one JSON object.
//
//	client APP IMAGE [PART…]
//
// Each part is a function; what it returns is JSON, and an error that ends it is {error: its type, says: its message}.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"reflect"
	"slices"
	"sort"
	"strings"
	"time"

	modal "github.com/modal-labs/modal-client/go"
)

type object = map[string]any

var (
	ctx    = context.Background()
	client *modal.Client
	app    string
	image  string
)

func unique(kind string) string { return app + "-go-" + kind }

func pointer[T any](value T) *T { return &value }

// Ends a part with an error.
func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func done(err error) {
	if err != nil {
		panic(err)
	}
}

func named(name string) *modal.Function {
	return must(client.Functions.FromName(ctx, app, name, nil))
}

func list(values ...any) []any { return values }

// The client's own types of errors, in the order in which they are looked for.
var kinds = []error{
	modal.TimeoutError{}, modal.FunctionTimeoutError{}, modal.RemoteError{}, modal.InternalFailure{}, modal.NotFoundError{},
	modal.AlreadyExistsError{}, modal.InvalidError{}, modal.QueueEmptyError{}, modal.QueueFullError{}, modal.ExecutionError{},
}

func described(err error) object {
	for _, kind := range kinds {
		if found := reflect.New(reflect.TypeOf(kind)); errors.As(err, found.Interface()) {
			return object{"error": reflect.TypeOf(kind).Name(), "says": err.Error()}
		}
	}
	return object{"error": "ClientError", "says": err.Error()}
}

// What an action fails with.
func failure[T any](value T, err error) object {
	if err == nil {
		return object{"returned": fmt.Sprint(value)}
	}
	return described(err)
}

func fails(err error) object { return failure("", err) }

func remote(function *modal.Function, args ...any) any {
	return must(function.Remote(ctx, args, nil))
}

func method(class *modal.Cls, parameters object, name string) *modal.Function {
	return must(must(class.Instance(ctx, parameters)).Method(name))
}

func arguments() any {
	day := time.Date(2024, 2, 29, 12, 30, 15, 0, time.UTC)
	values := list(7, -2.5, "snö ☃", true, nil, []byte{0, 255}, list(1, list(2)), object{"a": object{"b": 1}}, day)
	answer := must(named("describe").Remote(ctx, values, object{"last": 1 << 40})).(map[any]any)
	args, kwargs := answer["args"].([]any), answer["kwargs"].(map[any]any)
	bytes := []any{}
	for _, one := range args[5].([]byte) {
		bytes = append(bytes, one)
	}
	deep := fmt.Sprint(args[6:8]) == "[[1 [2]] map[a:map[b:1]]]"
	return object{
		"kinds": answer["kinds"], "same": fmt.Sprint(args[:5]) == fmt.Sprint(values[:5]), "deep": deep, "bytes": bytes,
		"day": args[8].(time.Time).UTC().Format("2006-01-02T15:04:05.000Z"), "last": kwargs["last"],
	}
}

func large() any {
	sized := named("sized")
	there, back := remote(sized, make([]byte, 3<<20), 5).([]byte), remote(sized, make([]byte, 7), 3<<20).([]byte)
	call := must(sized.Spawn(ctx, list(make([]byte, 9<<10), 9<<10), nil))
	spawned := must(call.Get(ctx, nil)).([]byte)
	return object{"there": len(there), "back": len(back), "byte": back[len(back)-1], "spawned": len(spawned)}
}

func failing() any {
	raises, overruns := named("fails"), named("overruns")
	remote := func(function *modal.Function, args ...any) object { return failure(function.Remote(ctx, args, nil)) }
	return object{
		"raised":          remote(raises, "plainly"),
		"unserializable":  remote(raises, "object"),
		"died":            remote(raises, "exit"),
		"overran":         remote(overruns),
		"spawned":         failure(must(raises.Spawn(ctx, list("later"), nil)).Get(ctx, nil)),
		"wrong_arguments": remote(overruns, 1, 2, 3),
	}
}

func missing() any {
	plain := must(must(client.Cls.FromName(ctx, app, "Plain", nil)).Instance(ctx, nil))
	return object{
		"app":         failure(client.Functions.FromName(ctx, unique("none"), "describe", nil)),
		"function":    failure(client.Functions.FromName(ctx, app, "none", nil)),
		"class":       failure(client.Cls.FromName(ctx, app, "None", nil)),
		"method":      failure(plain.Method("none")),
		"call":        failure(client.FunctionCalls.FromID(ctx, "fc-0000000000000000000000", nil)),
		"id":          failure(client.Functions.FromID(ctx, "fu-0000000000000000000000")),
		"queue":       failure(client.Queues.FromName(ctx, unique("none"), nil)),
		"secret":      failure(client.Secrets.FromName(ctx, unique("none"), nil)),
		"lookup":      failure(client.Apps.FromName(ctx, unique("none"), nil)),
		"environment": failure(client.Environments.FromName(ctx, unique("none"), nil)),
		"image":       failure(client.Images.FromID(ctx, "im-0000000000000000000000", nil)),
	}
}

func calls() any {
	waits := named("waits")
	spawn := func(seconds float64) *modal.FunctionCall { return must(waits.Spawn(ctx, list(seconds), nil)) }
	first, second := spawn(0.5), spawn(60)
	early := failure(second.Get(ctx, &modal.FunctionCallGetParams{Timeout: pointer(time.Duration(0))}))
	again := must(client.FunctionCalls.FromID(ctx, first.FunctionCallID, nil))
	results := list(
		must(first.Get(ctx, nil)), must(first.Get(ctx, nil)),
		must(again.Get(ctx, &modal.FunctionCallGetParams{Timeout: pointer(10 * time.Second)})),
	)
	done(second.Cancel(ctx, nil))
	cancelled := failure(second.Get(ctx, nil))
	third := spawn(60)
	done(third.Cancel(ctx, &modal.FunctionCallCancelParams{TerminateContainers: true}))
	return object{"early": early, "results": results, "cancelled": cancelled, "terminated": failure(third.Get(ctx, nil))}
}

func classes() any {
	greeter, plain := must(client.Cls.FromName(ctx, app, "Greeter", nil)), must(client.Cls.FromName(ctx, app, "Plain", nil))
	all := method(greeter, object{"greeting": "hej", "times": 2, "loud": true, "tail": []byte("?")}, "greet")
	return object{
		"plain":   remote(method(plain, nil, "double"), 4),
		"some":    remote(method(greeter, object{"greeting": "hi"}, "greet"), "Ada"),
		"all":     must(all.Remote(ctx, nil, object{"name": "Ada"})),
		"spawned": must(must(all.Spawn(ctx, list("Bo"), nil)).Get(ctx, nil)),
		"untyped": failure(greeter.Instance(ctx, object{"greeting": 5})),
	}
}

func options() any {
	secret := must(client.Secrets.FromMap(ctx, map[string]string{"FROM_SECRET": "from the secret"}, nil))
	variable, greeter := named("variable"), must(client.Cls.FromName(ctx, app, "Greeter", nil))
	other := must(variable.WithOptions(&modal.FunctionWithOptionsParams{
		Env: map[string]string{"FROM_ENV": "from env"}, Secrets: []*modal.Secret{secret}, Timeout: pointer(30 * time.Second),
	}).Instance(ctx))
	class := greeter.WithOptions(&modal.ClsWithOptionsParams{Env: map[string]string{"FROM_ENV": "of a class"}}).
		WithConcurrency(&modal.ClsWithConcurrencyParams{MaxInputs: 3})
	batching := &modal.FunctionWithBatchingParams{MaxBatchSize: 2, Wait: 10 * time.Millisecond}
	batched := must(named("describe").WithBatching(batching).Instance(ctx))
	routed := must(variable.WithOptions(&modal.FunctionWithOptionsParams{RoutingRegion: pointer("here")}).Instance(ctx))
	ids := object{}
	for _, function := range []*modal.Function{variable, other, batched, routed} {
		ids[function.FunctionID] = true
	}
	return object{
		"env":     remote(other, "FROM_ENV"),
		"secret":  remote(other, "FROM_SECRET"),
		"without": remote(variable, "FROM_ENV"),
		"class":   remote(method(class, object{"greeting": "x"}, "variable"), "FROM_ENV"),
		"others":  len(ids),
		"routed":  remote(routed, "MODAL_IS_REMOTE"),
		"gpu":     failure(variable.WithOptions(&modal.FunctionWithOptionsParams{GPU: pointer("H100:2")}).Instance(ctx)),
	}
}

func scaling() any {
	counts := named("counts")
	update := func(least, most, buffer uint32, window time.Duration) (*modal.FunctionAutoscalerSettings, error) {
		return counts.UpdateAutoscaler(ctx, &modal.FunctionUpdateAutoscalerParams{
			MinContainers: &least, MaxContainers: &most, BufferContainers: &buffer, ScaledownWindow: &window,
		})
	}
	updated := must(update(0, 3, 1, 9*time.Second))
	refused := failure(update(5, 3, 0, 9*time.Second))
	must(update(0, 1, 0, 20*time.Second))
	stats := must(counts.GetCurrentStats(ctx, nil))
	return object{
		"updated": object{
			"minContainers": updated.MinContainers, "maxContainers": updated.MaxContainers,
			"bufferContainers": updated.BufferContainers, "scaledownWindowMs": updated.ScaledownWindow.Milliseconds(),
		},
		"refused": refused, "stats": object{"backlog": stats.Backlog, "numTotalRunners": stats.NumTotalRunners},
	}
}

func generators() any {
	// The client hands out the wire's own message, whose package is internal to it.
	done := remote(named("counts"), 3).(interface{ GetItemsTotal() uint64 })
	return object{"items": done.GetItemsTotal()}
}

// Makes maps of unpickled items into JSON objects.
func plain(value any) any {
	switch value := value.(type) {
	case map[any]any:
		made := object{}
		for key, one := range value {
			made[fmt.Sprint(key)] = plain(one)
		}
		return made
	case []any:
		made := []any{}
		for _, one := range value {
			made = append(made, plain(one))
		}
		return made
	}
	// What a pickle says for None has a type of its own.
	if fmt.Sprintf("%T", value) == "ogórek.None" {
		return nil
	}
	return value
}

func queues() any {
	queue := must(client.Queues.Ephemeral(ctx, nil))
	aside := &modal.QueuePutParams{Partition: "p", PartitionTTL: time.Minute}
	done(queue.Put(ctx, 1, nil))
	done(queue.PutMany(ctx, list("two", nil, object{"three": list(3, 3.5)}, true), nil))
	done(queue.Put(ctx, "aside", aside))
	lengths := list(
		must(queue.Len(ctx, nil)), must(queue.Len(ctx, &modal.QueueLenParams{Partition: "p"})), must(queue.Len(ctx, &modal.QueueLenParams{Total: true})),
	)
	seen := []any{}
	for item, err := range queue.Iterate(ctx, nil) {
		seen = append(seen, plain(must(item, err)))
	}
	got := append(list(must(queue.Get(ctx, nil))), must(queue.GetMany(ctx, 4, nil))...)
	empty := failure(queue.Get(ctx, &modal.QueueGetParams{Timeout: pointer(200 * time.Millisecond)}))
	took := must(queue.Get(ctx, &modal.QueueGetParams{Partition: "p"}))
	many := make([]any, 5000)
	for at := range many {
		many[at] = at
	}
	done(queue.PutMany(ctx, many, nil))
	full := fails(queue.Put(ctx, 0, &modal.QueuePutParams{Timeout: pointer(300 * time.Millisecond)}))
	done(queue.Clear(ctx, &modal.QueueClearParams{All: true}))
	cleared := must(queue.Len(ctx, &modal.QueueLenParams{Total: true}))
	long := fails(queue.Put(ctx, 0, &modal.QueuePutParams{Partition: strings.Repeat("p", 65)}))
	queue.CloseEphemeral()
	kept := must(client.Queues.FromName(ctx, unique("queue"), &modal.QueueFromNameParams{CreateIfMissing: true}))
	done(kept.Put(ctx, "for Python", nil))
	return object{
		"lengths": lengths, "seen": seen, "got": plain(got), "empty": empty, "aside": took, "full": full, "cleared": cleared,
		"long": long, "kept": kept.Name,
	}
}

func deleted() any {
	name := unique("gone")
	must(client.Queues.FromName(ctx, name, &modal.QueueFromNameParams{CreateIfMissing: true}))
	done(client.Queues.Delete(ctx, name, nil))
	done(client.Queues.Delete(ctx, name, &modal.QueueDeleteParams{AllowMissing: true}))
	return fails(client.Queues.Delete(ctx, name, nil))
}

func secrets() any {
	name := app + "-secret"
	secret := must(client.Secrets.FromName(ctx, name, &modal.SecretFromNameParams{RequiredKeys: []string{"A"}}))
	return object{
		"id":      secret.SecretID[:3],
		"lacking": failure(client.Secrets.FromName(ctx, name, &modal.SecretFromNameParams{RequiredKeys: []string{"A", "C"}})),
		"wrong":   failure(client.Secrets.FromMap(ctx, map[string]string{"1x": "y"}, nil)),
	}
}

func lookups() any {
	found := must(client.Apps.FromName(ctx, app, nil))
	info := must(found.Info(ctx, nil))
	made := must(client.Apps.FromName(ctx, unique("app"), &modal.AppFromNameParams{CreateIfMissing: true}))
	main := must(client.Environments.FromName(ctx, "main", nil))
	listed := false
	for one, err := range must(main.Apps.List(ctx)) {
		listed = must(one, err).Name == app || listed
	}
	name := unique("environment")
	name = name[max(0, len(name)-60):]
	done(client.Environments.Objects.Create(ctx, name, nil))
	twice := fails(client.Environments.Objects.Create(ctx, name, nil))
	environments := []string{}
	for one, err := range must(client.Environments.Objects.List(ctx)) {
		environments = append(environments, must(one, err).Name)
	}
	done(client.Environments.Objects.Delete(ctx, name))
	variable, functions := named("variable"), []string{}
	for function := range info.Functions {
		functions = append(functions, function)
	}
	sort.Strings(functions)
	pinned := func(version int) (*modal.Function, error) {
		return client.Functions.FromName(ctx, app, "variable", &modal.FunctionFromNameParams{Version: version})
	}
	return object{
		"state": info.Lifecycle.State, "functions": functions, "same": info.Functions["variable"] == variable.FunctionID,
		"by_id": remote(must(client.Functions.FromID(ctx, variable.FunctionID)), "MODAL_IS_REMOTE"),
		"made":  made.AppID[:3], "listed": listed, "twice": twice, "environment": slices.Contains(environments, name),
		"web": variable.GetWebURL(), "version": remote(must(pinned(1)), "MODAL_IS_REMOTE"), "no_version": failure(pinned(99)),
	}
}

func logs() any {
	raises := named("fails")
	call := must(raises.Spawn(ctx, list("log line"), nil))
	lines := func(entries iter.Seq2[modal.LogEntry, error], err error) bool {
		text := ""
		for entry, err := range must(entries, err) {
			text += must(entry, err).Message
		}
		return strings.Contains(text, "failing by log line")
	}
	return list(
		lines(call.Logs.Stream(ctx, &modal.LogStreamParams{Timeout: pointer(20 * time.Second)})),
		lines(raises.Logs.Tail(ctx, &modal.LogTailParams{Entries: 50})),
		lines(call.Logs.Fetch(ctx, nil)),
	)
}

func metrics() any {
	_, there := must(named("variable").Metrics.Export(ctx, nil)).Series["successful_calls_count"]
	return there
}

// What is not served yet, each with a sentence and at once.
func unserved() any {
	must(client.Images.FromID(ctx, image, nil))
	create := &modal.VolumeFromNameParams{CreateIfMissing: true}
	return object{
		"volume":    failure(client.Volumes.FromName(ctx, unique("volume"), create)),
		"ephemeral": failure(client.Volumes.Ephemeral(ctx, nil)),
		"proxy":     failure(client.Proxies.FromName(ctx, "none", nil)),
		"tagged":    failure(client.Images.FromName(ctx, "none", nil)),
	}
}

func stranger() any {
	other := must(modal.NewClientWithOptions(&modal.ClientParams{TokenID: "ak-0000000000000000000000", TokenSecret: "as-0"}))
	defer other.Close()
	return failure(other.Functions.FromName(ctx, app, "describe", nil))
}

type part struct {
	name string
	run  func() any
}

func (p part) said() (said any) {
	defer func() {
		if found := recover(); found != nil {
			err, ok := found.(error)
			if !ok {
				err = fmt.Errorf("%v", found)
			}
			said = described(err)
		}
	}()
	return p.run()
}

func main() {
	client, app, image = must(modal.NewClient()), os.Args[1], os.Args[2]
	said := object{}
	for _, part := range []part{
		{"arguments", arguments}, {"large", large}, {"failures", failing}, {"missing", missing}, {"calls", calls}, {"classes", classes},
		{"options", options}, {"scaling", scaling}, {"generators", generators}, {"queues", queues}, {"deleted", deleted},
		{"secrets", secrets}, {"lookups", lookups}, {"logs", logs}, {"metrics", metrics}, {"unserved", unserved}, {"stranger", stranger},
	} {
		if len(os.Args) == 3 || slices.Contains(os.Args[3:], part.name) {
			said[part.name] = part.said()
		}
	}
	fmt.Println(string(must(json.Marshal(said))))
}
