"""What the neurons of both hosts share: the mixins that a neuron of another kind, or of another host, is made of."""
