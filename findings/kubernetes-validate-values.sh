# kubernetes-validate 1.37.0 holds keys and types against Kubernetes' own schemas, with --strict every key, but hardly a value, for there
# is hardly one in these schemas: a StatefulSet of -3 replicas with a port 99999, a memory of "64 potatoes", a pull policy "Sometimes",
# a name "UPPER_case!" and a selector that selects none of its pods passes, strictly, and so does a Secret that is not base64. What an
# API server refuses for its values has to be tested by other means.
. "$(dirname "$0")/common.sh"
cat >set.yaml <<'YAML'
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: "UPPER_case!"}
spec:
  replicas: -3
  serviceName: it
  selector: {matchLabels: {app: one}}
  template:
    metadata: {labels: {app: another}}
    spec:
      containers:
        - {name: it, image: it, imagePullPolicy: Sometimes, ports: [{containerPort: 99999, protocol: PIGEON}],
           resources: {limits: {memory: 64 potatoes}}}
YAML
cat >secret.yaml <<'YAML'
apiVersion: v1
kind: Secret
metadata: {name: it}
data: {key: "not base64!"}
YAML
sed 's/replicas:/replicass:/' set.yaml >unknown.yaml
sed 's/-3/"3"/' set.yaml >typed.yaml
python_packages kubernetes-validate==1.37.0
said() { kubernetes-validate --strict "$1" >said 2>&1 && code=0 || code=$?; echo "$code $(sed 's/.*1.37: //; s/ for resource.*//' said)"; }
expect "a set" "0 INFO set.yaml passed" "$(said set.yaml)"
expect "a secret" "0 INFO secret.yaml passed" "$(said secret.yaml)"
expect "an unknown key" "1 spec: Additional properties are not allowed ('replicass' was unexpected)" "$(said unknown.yaml)"
expect "another type" "1 spec.replicas: '3' is not of type 'integer', 'null'" "$(said typed.yaml)"
